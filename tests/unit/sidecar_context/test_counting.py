import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.context.counting import (
    Counter,
    CountError,
    EngineCounter,
    EstimatingCounter,
    LocalCounter,
    load_counter,
)
from trimtab.sidecar.context.limits import WindowLimits, answer_tokens, surely_fits
from trimtab.sidecar.interfaces import Call, Route


def call(route: Route, **body: Any) -> Call:
    return Call(route, json.dumps(body, ensure_ascii=False).encode(), body, stream=False)


CHAT = call(Route.CHAT, messages=[{"role": "user", "content": "The window of Zürich"}])


@pytest.fixture
def local(model_folder: Path) -> LocalCounter:
    return load_counter(model_folder)


async def test_a_chat_is_counted_as_the_template_prints_it(local: LocalCounter) -> None:
    text = "<s><|start|>user\nThe window of Zürich<|end|>\n<|start|>assistant\n"
    encoded = local._tokenizer.encode(text, add_special_tokens=False)
    assert encoded.tokens[:2] == ["<s>", "<|start|>"]
    assert await local.total(CHAT) == len(encoded)
    assert local.exact


async def test_tools_count(local: LocalCounter) -> None:
    with_tools = call(Route.CHAT, **CHAT.body, tools=[{"type": "function", "function": {"name": "f"}}])
    assert await local.total(with_tools) > await local.total(CHAT)


async def test_of_several_prompts_the_longest_counts(local: LocalCounter) -> None:
    long, short = "a conversation grows", "a"
    assert await local.total(call(Route.COMPLETIONS, prompt=[short, long])) == (await local.texts([long]))[0]


async def test_the_engines_own_truncation_bounds_the_prompt(local: LocalCounter) -> None:
    body = {"inputs": "one two three four five six", "parameters": {"truncate": 3}}
    assert await local.total(call(Route.GENERATE, **body)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(call(Route.CHAT), id="no messages"),
        pytest.param(call(Route.CHAT, messages=[{"role": "pirate", "content": "x"}]), id="refused by the template"),
        pytest.param(call(Route.CHAT, messages=["x"]), id="no message"),
        pytest.param(call(Route.COMPLETIONS, prompt=[1, 2]), id="token ids"),
        pytest.param(call(Route.GENERATE), id="no inputs"),
    ],
)
async def test_what_the_engine_will_refuse_is_not_counted(local: LocalCounter, wrong: Call) -> None:
    with pytest.raises(CountError):
        await local.total(wrong)


async def test_without_a_template_a_chat_is_only_estimated(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_folder / "tokenizer.json").read_bytes())
    counter = load_counter(tmp_path / "tokenizer.json")
    assert not counter.exact
    assert await counter.total(CHAT) > (await counter.texts(["The window of Zürich"]))[0]


def test_a_missing_or_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_counter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_counter(tmp_path)


async def test_the_tail_of_a_text_has_no_more_tokens_than_asked(local: LocalCounter) -> None:
    text = "The window of a model holds a limited number of tokens, and Zürich grows 日本語 with every turn. " * 20
    total = (await local.texts([text]))[0]
    for tokens in (1, 2, 10, 57, total - 1):
        tail = await local.tail(text, tokens)
        assert text.endswith(tail) and tail
        assert abs((await local.texts([tail]))[0] - tokens) <= 3  # cut inside a character, or merged differently
    assert await local.tail(text, total) == text
    assert await local.tail(text, 0) == ""


async def test_counts_are_remembered_and_bounded(local: LocalCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.sidecar.context.counting._MEMO_ENTRIES", 3)
    first = await local.texts(["a", "b b", "a", "c c c", "d"])
    assert first == await local.texts(["a", "b b", "a", "c c c", "d"])
    assert len(local._memo) == 3


@given(text=st.text(max_size=200))
async def test_an_estimate_is_never_below_a_third_of_the_bytes(text: str) -> None:
    counter = EstimatingCounter()
    (tokens,) = await counter.texts([text])
    assert tokens * 3 >= len(text.encode("utf-8", "surrogatepass"))
    assert text.endswith(await counter.tail(text, 5))
    assert not counter.exact


@given(
    route=st.sampled_from(list(Route)),
    body=st.dictionaries(
        st.sampled_from(["messages", "inputs", "prompt", "tools", "parameters"]),
        st.none()
        | st.text(max_size=5)
        | st.lists(st.dictionaries(st.just("content"), st.text(max_size=5)), max_size=2),
    ),
)
async def test_an_estimate_never_fails(route: Route, body: dict[str, Any]) -> None:
    assert await EstimatingCounter().total(call(route, **body)) >= 0


class Engine:
    """TGI's tokenizing routes: one token a word."""

    def __init__(self, status: int = 200, answer: bytes | None = None) -> None:
        self.status, self.answer = status, answer
        self.asked: list[str] = []

    async def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append(path)
        if self.answer is not None:
            return self.status, self.answer
        data = json.loads(body)
        text = data["inputs"] if path == "/tokenize" else " ".join(m["content"] for m in data["messages"])
        words, place, found = text.split(" "), 0, []
        for number, word in enumerate(words):
            found.append({"id": number, "text": word, "start": place, "stop": place + len(word)})
            place += len(word) + 1
        return 200, json.dumps(found if path == "/tokenize" else {"tokenize_response": found}).encode()


async def test_the_engine_counts_where_no_tokenizer_is_mounted() -> None:
    counter: Counter = EngineCounter(Engine())
    assert await counter.total(CHAT) == 4
    assert await counter.total(call(Route.GENERATE, inputs="a b c")) == 3
    assert await counter.texts(["a b", "", "c"]) == [2, 0, 1]
    assert await counter.tail("a b c d", 2) == "c d"
    assert await counter.tail("a b", 5) == "a b"
    assert await counter.tail("a b", 0) == ""


@pytest.mark.parametrize(
    "engine", [Engine(404, b"[]"), Engine(200, b"nonsense"), Engine(200, b"{}"), Engine(200, b"7")]
)
async def test_an_engine_that_does_not_count_is_an_error(engine: Engine) -> None:
    with pytest.raises(CountError):
        await EngineCounter(engine).total(CHAT)


@pytest.mark.parametrize(
    ("c", "tokens"),
    [
        pytest.param(call(Route.CHAT, max_tokens=5), 5, id="max_tokens"),
        pytest.param(call(Route.CHAT, max_completion_tokens=7), 7, id="its other name"),
        pytest.param(call(Route.CHAT, max_tokens=5000), 1024, id="the engine checks a chunk"),
        pytest.param(call(Route.COMPLETIONS, max_tokens=-5), 1, id="senseless"),
        pytest.param(call(Route.GENERATE, parameters={"max_new_tokens": 9}), 9, id="native"),
        pytest.param(call(Route.GENERATE, parameters=None), 1, id="none"),
    ],
)
def test_room_for_the_answer_follows_the_engines_rule(c: Call, tokens: int) -> None:
    assert answer_tokens(c) == tokens
    assert WindowLimits(100, 4096).budget(tokens) == min(100, 4096 - tokens)


@given(texts=st.lists(st.text(max_size=40), max_size=10))
async def test_what_surely_fits_does_fit(texts: list[str], model_folder: Path) -> None:
    c = call(Route.CHAT, messages=[{"role": "user", "content": text} for text in texts])
    total = await load_counter(model_folder).total(c)
    for budget in (total - 1, 600, 1000):
        if surely_fits(c, budget):
            assert total <= budget


def test_tools_are_never_sure_to_fit() -> None:
    assert surely_fits(call(Route.CHAT, messages=[]), 10_000)
    assert not surely_fits(call(Route.CHAT, messages=[], tools=[]), 10_000)
