"""Heads of requests: what is refused, and what is read from them."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.errors import RefusedError
from trimtab.sidecar.head import Head, HeadReader, valid_traceparent
from trimtab.sidecar.interfaces import Route


def reader(**change: object) -> HeadReader:
    settings = {"secret": b"s", "key_map": lambda where: {}, "priority_header": b"x-priority"} | change
    return HeadReader(**settings)  # type: ignore[arg-type]


def read(raw: bytes, **change: object) -> Head:
    return reader(**change).read(raw)


BASE = b"POST /generate HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(BASE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", id="length and coding"),
        pytest.param(BASE + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", id="coding and length"),
        pytest.param(BASE + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n", id="equal lengths twice"),
        pytest.param(BASE + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", id="different lengths"),
        pytest.param(BASE + b"Content-Length: 3, 3\r\n\r\n", id="list of lengths"),
        pytest.param(BASE + b"Content-Length: +3\r\n\r\n", id="signed length"),
        pytest.param(BASE + b"Content-Length: 0x3\r\n\r\n", id="hexadecimal length"),
        pytest.param(BASE + b"Content-Length: 3 3\r\n\r\n", id="blank in length"),
        pytest.param(BASE + b"Content-Length:\r\n\r\n", id="empty length"),
        pytest.param(BASE + b"Content-Length: 99999999999999999999999\r\n\r\n", id="huge length"),
        pytest.param(BASE + b"Transfer-Encoding: gzip\r\n\r\n", id="other coding"),
        pytest.param(BASE + b"Transfer-Encoding: gzip, chunked\r\n\r\n", id="two codings"),
        pytest.param(BASE + b"Transfer-Encoding: chunked, gzip\r\n\r\n", id="chunked not last"),
        pytest.param(BASE + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunked twice"),
        pytest.param(BASE + b"Transfer-Encoding: xchunked\r\n\r\n", id="almost chunked"),
        pytest.param(BASE + b"Transfer-Encoding : chunked\r\n\r\n", id="blank before colon"),
        pytest.param(BASE + b"X: a\r\n b\r\n\r\n", id="folded line"),
        pytest.param(BASE + b"X: a\n\r\n", id="bare line feed"),
        pytest.param(BASE + b"X: a\rY: b\r\n\r\n", id="bare carriage return"),
        pytest.param(BASE + b"X: a\0b\r\n\r\n", id="zero byte"),
        pytest.param(BASE + b"X(: a\r\n\r\n", id="odd name"),
        pytest.param(BASE + b": a\r\n\r\n", id="empty name"),
        pytest.param(BASE + b"Host: b\r\n\r\n", id="two hosts"),
        pytest.param(b"POST /generate HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"POST /generate HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", id="chunked in 1.0"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", id="version 2"),
        pytest.param(b"GET /\r\n\r\n", id="version 0.9"),
        pytest.param(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", id="version 1.2"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", id="connect"),
        pytest.param(b"NONSENSE / HTTP/1.1\r\nHost: a\r\n\r\n", id="unknown method"),
        pytest.param(b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", id="control character in target"),
        pytest.param(b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", id="fragment"),
        pytest.param(b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", id="other scheme"),
        pytest.param(b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", id="TLS"),
        pytest.param(BASE + b"X: y\r\n" * 200 + b"\r\n", id="too many fields"),
    ],
)
def test_ambiguous_and_malformed_heads_are_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        read(raw)
    assert caught.value.failure.status in (400, 431, 501, 505)


def test_every_single_byte_of_a_head_replaced_is_refused_or_framed_alike() -> None:
    """No mutation of the head makes us and llhttp on its own disagree on the body's length."""
    raw = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\nX-A: b\r\n\r\n"
    for position in range(len(raw)):
        for byte in (0, 9, 10, 13, 32, 44, 48, 58, 99, 127, 200):
            changed = raw[:position] + bytes([byte]) + raw[position + 1 :]
            if not changed.endswith(b"\r\n\r\n") or changed.find(b"\r\n\r\n") + 4 != len(changed):
                continue
            try:
                head = read(changed)
            except RefusedError:
                continue
            assert head.length == _length_seen_by_llhttp(changed)


class _Bodies:
    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


def _length_seen_by_llhttp(head: bytes) -> int:
    seen = _Bodies()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(head)
    count = 0
    while not seen.done:
        parser.feed_data(b"x")
        count += 1
    return count


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_read_never_worse(noise: bytes) -> None:
    for raw in (noise + b"\r\n\r\n", BASE + noise + b"\r\n\r\n"):
        try:
            head = read(raw)
        except RefusedError:
            continue
        assert head.length >= -1


@pytest.mark.parametrize(
    ("line", "route"),
    [
        (b"POST / HTTP/1.1", Route.COMPAT),
        (b"POST /generate HTTP/1.1", Route.GENERATE),
        (b"POST /generate?x=1 HTTP/1.1", Route.GENERATE),
        (b"POST http://other/generate_stream HTTP/1.1", Route.GENERATE_STREAM),
        (b"POST /v1/chat/completions HTTP/1.1", Route.CHAT),
        (b"POST /v1/completions HTTP/1.1", Route.COMPLETIONS),
        (b"GET /generate HTTP/1.1", Route.OTHER),
        (b"POST /generate/ HTTP/1.1", Route.OTHER),
        (b"POST //generate HTTP/1.1", Route.OTHER),
        (b"POST /%67enerate HTTP/1.1", Route.OTHER),
        (b"GET / HTTP/1.1", Route.OTHER),
    ],
)
def test_routes(line: bytes, route: Route) -> None:
    assert read(line + b"\r\nHost: a\r\n\r\n").route is route


def test_only_json_without_query_or_coding_has_keys() -> None:
    def keyed(line: bytes, fields: bytes) -> bool:
        return read(line + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + fields + b"\r\n").keys is not None

    json = b"Content-Type: application/json; charset=utf-8\r\n"
    assert keyed(b"POST /generate", json)
    assert not keyed(b"POST /generate?a", json)
    assert not keyed(b"POST /generate", b"Content-Type: text/plain\r\n")
    assert not keyed(b"POST /generate", b"")
    assert not keyed(b"POST /generate", json + b"Content-Encoding: gzip\r\n")
    assert not keyed(b"POST /generate", json + json)
    assert not keyed(b"POST /tokenize", json)


def test_scopes_follow_from_the_authorization() -> None:
    def scope(fields: bytes, **change: object) -> bytes:
        return read(BASE + fields + b"\r\n", **change).scope

    anonymous = scope(b"")
    assert scope(b"X-Tenant: b\r\n") == anonymous
    assert scope(b"Authorization: Bearer a\r\n") != anonymous
    assert scope(b"Authorization: Bearer a\r\n") != scope(b"Authorization: Bearer b\r\n")
    assert scope(b"Authorization: a\r\nAuthorization: b\r\n") != scope(b"Authorization: a\r\n")
    assert scope(b"", secret=b"other") != anonymous


def test_a_tenant_header_divides_further_and_never_replaces_the_authorization() -> None:
    def scope(fields: bytes) -> bytes:
        return read(BASE + fields + b"\r\n", tenant_header=b"x-tenant").scope

    scopes = {
        scope(b""),
        scope(b"X-Tenant: a\r\n"),
        scope(b"X-Tenant: b\r\n"),
        scope(b"X-Tenant: a\r\nX-Tenant: b\r\n"),
        scope(b"X-Tenant: a\r\nAuthorization: x\r\n"),
        scope(b"Authorization: x\r\n"),
        scope(b"Authorization: a\r\n"),
    }
    assert len(scopes) == 7


def test_shared_scope() -> None:
    assert read(BASE + b"Authorization: x\r\n\r\n", shared=True).scope == read(BASE + b"\r\n", shared=True).scope


def test_what_goes_to_the_engine() -> None:
    head = read(
        b"POST http://other/generate?a=b HTTP/1.1\r\nHost: x\r\n"
        b"Connection: close, X-Gone\r\nX-Gone: 1\r\nX-Stays: 2\r\n"
        b"Content-Length: 3\r\nExpect: 100-continue\r\nUpgrade: h2c\r\nProxy-Authorization: secret\r\n\r\n"
    )
    assert head.forward == b"POST /generate?a=b HTTP/1.1\r\nHost: x\r\nX-Stays: 2\r\n"


def test_equal_heads_are_parsed_once() -> None:
    heads = reader()
    raw = BASE + b"\r\n"
    assert heads.memo.get(raw) is None
    first = heads.read(raw)
    assert heads.memo[raw] is first


def test_the_memo_is_bounded_and_keeps_no_long_heads() -> None:
    heads = reader()
    for number in range(3000):
        heads.read(BASE + b"X: %d\r\n\r\n" % number)
    assert len(heads.memo) <= 1024
    long = BASE + b"X: " + b"y" * 5000 + b"\r\n\r\n"
    heads.read(long)
    assert long not in heads.memo


@pytest.mark.parametrize(("value", "priority"), [(b"high", 0), (b"Low", 2), (b"normal", 1), (b"9", 1)])
def test_priorities(value: bytes, priority: int) -> None:
    assert read(BASE + b"X-Priority: " + value + b"\r\n\r\n").priority == priority


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        (b"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", True),
        (b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", False),
        (b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        (b"00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        (b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        (b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        (b"", False),
    ],
)
def test_trace_contexts(value: bytes, valid: bool) -> None:
    assert valid_traceparent(value) is valid
