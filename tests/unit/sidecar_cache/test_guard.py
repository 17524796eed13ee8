import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.guard import decisive_parts, fingerprint, same_words_in_another_order

PAIRS_FILE = Path(__file__).parents[3] / "benchmarks" / "semantic_pairs.jsonl"
PAIRS = [json.loads(line) for line in PAIRS_FILE.read_text().splitlines()]


def apart(one: str, two: str) -> bool:
    return fingerprint(one) != fingerprint(two) or same_words_in_another_order(one, two)


@pytest.mark.parametrize(
    "pair", [pytest.param(p, id=p["kind"]) for p in PAIRS if not p["same"] and "not listed" not in p["kind"]]
)
def test_prompts_that_differ_in_something_decisive_are_kept_apart(pair: dict[str, str]) -> None:
    assert apart(pair["a"], pair["b"])


def test_most_rewordings_stay_comparable() -> None:
    rewordings = [pair for pair in PAIRS if pair["same"]]
    lost = [
        (pair["a"], *map(list, map(decisive_parts, (pair["a"], pair["b"]))))
        for pair in rewordings
        if apart(pair["a"], pair["b"])
    ]
    assert len(lost) <= len(rewordings) / 5, lost


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param("pay 1,000.50 now", "pay 1,000.5 now", id="digits count as written"),
        pytest.param("it is -5 degrees", "it is 5 degrees", id="sign"),
        pytest.param("compare 3 and 4", "compare 4 and 3", id="order of numbers"),
        pytest.param("x < y", "x > y", id="symbols"),
        pytest.param('say "yes"', 'say "maybe"', id="quotation"),
        pytest.param("flights Paris London", "flights London Paris", id="order of names"),
        pytest.param("你好吗", "你好", id="other script"),
        pytest.param("ist das möglich", "ist das nötig", id="non-ASCII words"),
        pytest.param("das ist gut", "das ist nicht gut", id="another language's negation"),
        pytest.param("read ~/a/b.txt", "read ~/a/c.txt", id="path"),
        pytest.param("mail a@b.org", "mail c@b.org", id="address"),
        pytest.param("I don’t know", "I know", id="typographic apostrophe"),
        pytest.param("US policy", "us policy", id="capitals make a name"),
    ],
)
def test_details_are_seen(one: str, two: str) -> None:
    assert apart(one, two)


@given(text=st.text(max_size=200))
def test_a_text_is_never_apart_from_itself(text: str) -> None:
    assert not apart(text, text)


@given(words=st.lists(st.sampled_from(["dog", "bites", "man", "cat"]), min_size=1, max_size=5), data=st.data())
def test_the_same_words_in_another_order_are_apart(words: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(words))
    assert same_words_in_another_order(" ".join(words), " ".join(other)) == (words != list(other))


@given(number=st.integers(0, 10**12), other=st.integers(0, 10**12))
def test_different_numbers_are_always_apart(number: int, other: int) -> None:
    assert apart(f"what is {number} plus one", f"what is {other} plus one") == (number != other)


@pytest.mark.parametrize(
    "text", ['"' * 50_000, "`" * 50_000, "1" * 50_000, "a/" * 25_000, "'a" * 25_000, "1 " * 25_000]
)
def test_long_odd_texts_take_no_time(text: str) -> None:
    assert len(fingerprint(text)) == 16
