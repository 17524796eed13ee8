import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.codec import COMPRESS_FROM, decode, encode
from trimtab.sidecar.interfaces import Entry, Key

KEY = Key(b"k" * 32, stream=False)
OTHER = Key(b"l" * 32, stream=False)
SECRET = b"secret"

entries = st.builds(
    Entry,
    body=st.binary(max_size=400) | st.binary(max_size=20).map(lambda part: part * 500),
    headers=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=4).map(tuple),
    created=st.floats(0, 4e9),
    ttl=st.floats(0, 1e6),
    stream=st.booleans(),
    prompt_tokens=st.integers(0, 2**32 - 1),
    generated_tokens=st.integers(0, 2**32 - 1),
)


def fields(entry: Entry | None) -> tuple[object, ...] | None:
    if entry is None:
        return None
    return (
        entry.body,
        entry.headers,
        entry.created,
        entry.ttl,
        entry.stream,
        entry.prompt_tokens,
        entry.generated_tokens,
    )


def entry(body: bytes = b"body") -> Entry:
    return Entry(body, ((b"content-type", b"text/plain"),), 1.5, 60.0, stream=False)


@given(entry=entries)
def test_what_is_encoded_comes_back_unchanged(entry: Entry) -> None:
    key = Key(b"k" * 32, entry.stream)
    back = decode(key, encode(key, entry, SECRET), SECRET, max_body=10**6, tier="redis")
    assert fields(back) == fields(entry)
    assert back is not None and back.tier == "redis"


@given(data=st.data(), entry=entries)
def test_any_changed_bit_or_length_is_noticed(data: st.DataObject, entry: Entry) -> None:
    key = Key(b"k" * 32, entry.stream)
    good = encode(key, entry, SECRET)
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = good[: data.draw(st.integers(0, len(good) - 1))]
    for wrong in (bytes(bad), cut, good + b"x"):
        assert decode(key, wrong, SECRET, max_body=10**6, tier="redis") is None


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_entry(data: bytes) -> None:
    assert decode(KEY, data, SECRET, max_body=10**6, tier="redis") is None
    assert decode(KEY, b"ttc1" + data, b"", max_body=10**6, tier="redis") is None


@pytest.mark.parametrize(
    ("key", "secret", "max_body"),
    [
        pytest.param(OTHER, SECRET, 100, id="another key: a swapped answer"),
        pytest.param(Key(b"k" * 32, stream=True), SECRET, 100, id="another representation"),
        pytest.param(KEY, b"other", 100, id="another deployment's secret: a forged answer"),
        pytest.param(KEY, SECRET, 3, id="larger than allowed"),
    ],
)
def test_an_entry_is_believed_only_for_its_own_key_secret_and_size(key: Key, secret: bytes, max_body: int) -> None:
    data = encode(KEY, entry(), SECRET)
    assert decode(KEY, data, SECRET, max_body=4, tier="redis") is not None
    assert decode(key, data, secret, max_body=max_body, tier="redis") is None


def test_bodies_are_compressed_only_where_it_pays() -> None:
    repeated = entry(b"data: {}\n\n" * COMPRESS_FROM)
    assert len(encode(KEY, repeated, SECRET)) < len(repeated.body) / 10
    small = entry(b"x" * (COMPRESS_FROM - 1))
    assert len(encode(KEY, small, SECRET)) > len(small.body)
    noise = entry(random.Random(1).randbytes(COMPRESS_FROM * 2))
    assert len(noise.body) < len(encode(KEY, noise, SECRET)) < len(noise.body) + 200
