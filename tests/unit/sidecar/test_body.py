"""The decoder of chunked request bodies."""

from contextlib import suppress
from itertools import pairwise

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.body import ChunkedBody, SizedBody
from trimtab.sidecar.errors import RefusedError


def decode(raw: bytes, cuts: list[int] | None = None, limit: int = 10_000) -> tuple[bytes, bytes] | None:
    """(body, rest), or None when more input is needed."""
    body = ChunkedBody(limit)
    edges = [0, *sorted({cut % (len(raw) + 1) for cut in cuts or []}), len(raw)]
    for number, (start, end) in enumerate(pairwise(edges)):
        rest = body.feed(raw[start:end])
        if rest is not None:
            return body.take(), rest + raw[edges[number + 1] :]
    return None


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.binary(max_size=20), st.lists(st.integers(0, 500)))
def test_what_was_encoded_is_decoded_however_it_is_cut(pieces: list[bytes], rest: bytes, cuts: list[int]) -> None:
    raw = b"".join(b"%X\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert decode(raw + rest, cuts) == (b"".join(pieces), rest)
    for end in range(len(raw)):
        assert decode(raw[:end]) is None


class _Strict:
    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, data: bytes) -> None:
        if not self.done:
            self.body += data

    def on_message_complete(self) -> None:
        self.done = True


def llhttp(raw: bytes) -> bytes | None:
    """Body by llhttp; None when refused or incomplete."""
    seen = _Strict()
    parser = httptools.HttpRequestParser(seen)
    with suppress(httptools.HttpParserError):  # what came after a complete message does not matter
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
    return seen.body if seen.done else None


ALPHABET = [b"0", b"1", b"2", b"a", b"F", b"g", b"\r\n", b"\n", b"\r", b" ", b";", b"x", b"-", b"+", b"\0", b":"]


@given(st.lists(st.sampled_from(ALPHABET), max_size=25).map(b"".join), st.lists(st.integers(0, 60)))
def test_whatever_is_accepted_llhttp_reads_alike(raw: bytes, cuts: list[int]) -> None:
    try:
        found = decode(raw, cuts)
    except RefusedError:
        return
    if found is not None:
        assert llhttp(raw) == found[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b" 1\r\na\r\n",
        b"1 \r\na\r\n",
        b"1\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\nb",
        b"\r\n",
        b"123456789\r\n",
        b"1;" + b"x" * 500 + b"\r\n",
        b"g\r\n",
        b"1_0\r\n",
    ],
)
def test_malformed_chunks_are_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError):
        decode(raw)


def test_a_long_body_is_refused_before_it_arrives() -> None:
    with pytest.raises(RefusedError) as caught:
        decode(b"ffff\r\n", limit=1000)
    assert caught.value.failure.status == 413


def test_endless_trailers_are_refused() -> None:
    with pytest.raises(RefusedError):
        decode(b"0\r\n" + b"x: yyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 1000)


@given(st.binary(max_size=60), st.binary(max_size=10), st.lists(st.integers(0, 70), max_size=5))
def test_a_sized_body_takes_its_bytes_only(data: bytes, rest: bytes, cuts: list[int]) -> None:
    body = SizedBody(len(data))
    raw = data + rest
    edges = [0, *sorted({cut % (len(raw) + 1) for cut in cuts}), len(raw)]
    for start, end in pairwise(edges):
        left = body.feed(raw[start:end])
        if left is not None:
            assert left + raw[end:] == rest
            assert body.take() == data
            return
    raise AssertionError("the body never ended")
