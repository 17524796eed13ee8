"""The head of a request: strict parsing, and everything that depends on the head alone.

llhttp (httptools) does the parsing; on top of its strictness come one Host, HTTP/1.0 or 1.1 only, `chunked` as the
only transfer coding, and bounds. A head that was accepted is remembered by its exact bytes: most clients repeat
theirs, and a dictionary look-up replaces parsing without a second, laxer parser.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import httptools

from trimtab.sidecar.control import PLAIN, Control, parse_control
from trimtab.sidecar.errors import RefusedError
from trimtab.sidecar.interfaces import Headers, Key, NotCacheable, Route

ROUTES = {
    b"/": Route.COMPAT,
    b"/generate": Route.GENERATE,
    b"/generate_stream": Route.GENERATE_STREAM,
    b"/v1/chat/completions": Route.CHAT,
    b"/v1/completions": Route.COMPLETIONS,
    b"/invocations": Route.INVOCATIONS,
    b"/vertex": Route.VERTEX,
}
PRIORITIES = {b"high": 0, b"normal": 1, b"low": 2}
NORMAL = 1
MAX_HEADERS = 128
MAX_MEMO = 1024
MAX_MEMO_HEAD = 4096

# Fields that concern one connection only (RFC 9110, 7.6.1), and those the sidecar writes itself.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

KeyMap = dict[bytes, Key | NotCacheable]
SEMANTIC_MARK = b"+semantic"
"""Ends the scope of a tenant that is named among those who opted in to semantic answers."""


@dataclass(slots=True, eq=False)
class Head:
    """A request's head, parsed and judged."""

    method: bytes
    target: bytes  # origin form
    route: Route
    http11: bool
    length: int  # of the body; -1: chunked
    keep_alive: bool
    expects: bool  # Expect: 100-continue
    control: Control
    plain: bool  # no directive and no HEAD: a cached answer may be used without further questions
    json: bool  # POST of JSON to a generating route: the body is looked into
    scope: bytes
    priority: int
    traced: bool  # a valid traceparent is among the forwarded fields
    forward: bytes  # request line and end-to-end fields for the engine, without length and last CRLF
    accept: Headers
    keys: KeyMap | None  # bodies already keyed for this scope and route; None: nothing here is cacheable


class _Collector:
    """Callback target of llhttp for one head."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            raise RefusedError(431, "headers", f"more than {MAX_HEADERS} header fields")

    def on_headers_complete(self) -> None:
        self.complete = True


class HeadReader:
    """Parses heads for one listener; `tenancy` names a tenant header, `shared` puts everybody into one scope."""

    def __init__(
        self,
        *,
        secret: bytes,
        tenant_header: bytes | None = None,
        shared: bool = False,
        semantic_tenants: tuple[str, ...] = (),
        priority_header: bytes | None = None,
        key_map: Callable[[tuple[bytes, Route, bool]], KeyMap | None],
    ) -> None:
        self._secret = blake2b(secret, digest_size=32).digest()
        self._tenant_header = tenant_header
        self._shared = shared
        self._semantic_tenants = frozenset(name.encode() for name in semantic_tenants)
        self._priority_header = priority_header
        self._key_map = key_map
        self.memo: dict[bytes, Head] = {}

    def read(self, raw: bytes) -> Head:
        """The head in `raw`, which ends with its empty line. Raises RefusedError."""
        head = self._parse(raw)
        if len(raw) <= MAX_MEMO_HEAD:
            if len(self.memo) >= MAX_MEMO:
                self.memo.clear()
            self.memo[raw] = head
        return head

    def _parse(self, raw: bytes) -> Head:
        collector = _Collector()
        parser = httptools.HttpRequestParser(collector)
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade is never taken up; the request stays a plain one
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ if isinstance(error.__context__, RefusedError) else error from None
        except httptools.HttpParserError as error:
            raise RefusedError(400, "malformed", f"malformed request: {error}") from None
        if not collector.complete:
            raise RefusedError(400, "malformed", "malformed request: no end of the head")
        method: bytes = parser.get_method()
        version: str = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise RefusedError(505, "version", f"HTTP/{version} is not spoken here")
        if method == b"CONNECT":
            raise RefusedError(501, "method", "CONNECT is not spoken here")
        return self._judge(collector, method, version == "1.1", bool(parser.should_keep_alive()))

    def _judge(self, collector: _Collector, method: bytes, http11: bool, keep_alive: bool) -> Head:
        headers = [(name.lower(), value.strip(b" \t")) for name, value in collector.headers]
        names = [name for name, _ in headers]
        if names.count(b"host") > 1 or (http11 and b"host" not in names):
            raise RefusedError(400, "malformed", "a request has exactly one Host field")
        length = _body_length(headers, http11)
        target = _origin_form(collector.target)
        path, question, _ = target.partition(b"?")
        route = ROUTES.get(path, Route.OTHER) if method == b"POST" else Route.OTHER
        control = parse_control(headers)
        scope = self._scope(headers)
        json = route.generates and _is_json(headers)
        plain = control is PLAIN and method != b"HEAD"
        traced = any(name == b"traceparent" and valid_traceparent(value) for name, value in headers)
        return Head(
            method=method,
            target=target,
            route=route,
            http11=http11,
            length=length,
            keep_alive=keep_alive,
            expects=http11 and any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers),
            control=control,
            plain=plain,
            json=json,
            scope=scope,
            priority=self._priority(headers),
            traced=traced,
            forward=_forward(method, target, collector.headers, headers, traced),
            accept=tuple(headers),
            keys=self._key_map((scope, route, control.sampled)) if json and not question else None,
        )

    def _scope(self, headers: Headers) -> bytes:
        if self._shared:
            return b"shared"
        tenants = [value for name, value in headers if name == self._tenant_header]
        parts = [b"a"] + [value for name, value in headers if name == b"authorization"]
        if self._tenant_header is not None:
            parts += [b"t", *tenants]
        digest = blake2b(key=self._secret, digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(4, "big") + part)
        return digest.digest() + (b"" if self._semantic_tenants.isdisjoint(tenants) else SEMANTIC_MARK)

    def _priority(self, headers: Headers) -> int:
        if self._priority_header is None:
            return NORMAL
        for name, value in headers:
            if name == self._priority_header:
                return PRIORITIES.get(value.lower(), NORMAL)
        return NORMAL


def _body_length(headers: Headers, http11: bool) -> int:
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if codings:
        if codings != [b"chunked"] or not http11 or lengths:
            raise RefusedError(400, "malformed", "the only transfer coding is chunked, of HTTP/1.1, without a length")
        return -1
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise RefusedError(400, "malformed", "Content-Length is one number")
    return int(lengths[0])


def _origin_form(target: bytes) -> bytes:
    if b"#" in target or not target:
        raise RefusedError(400, "malformed", "malformed request target")
    if target.startswith(b"/") or target == b"*":
        return target
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise RefusedError(400, "malformed", "malformed request target")
    slash = rest.find(b"/")
    return rest[slash:] if slash >= 0 else b"/"


def _is_json(headers: Headers) -> bool:
    kinds = [value for name, value in headers if name == b"content-type"]
    coded = any(name == b"content-encoding" for name, _ in headers)
    return not coded and len(kinds) == 1 and kinds[0].split(b";")[0].strip().lower() == b"application/json"


def valid_traceparent(value: bytes) -> bool:
    """Whether a `traceparent` follows W3C Trace Context, level 1 (any version but ff)."""
    parts = value.split(b"-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == b"ff":
        return False
    if parts[0] == b"00" and len(parts) != 4:
        return False
    if not all(byte in b"0123456789abcdef" for part in parts[:4] for byte in part):
        return False
    return parts[1] != b"0" * 32 and parts[2] != b"0" * 16


def _forward(method: bytes, target: bytes, raw: Headers, headers: Headers, traced: bool) -> bytes:
    dropped = set(HOP_BY_HOP)
    for name, value in headers:
        if name == b"connection":
            dropped.update(token.strip().lower() for token in value.split(b","))
    dropped.discard(b"host")
    if not traced:
        dropped.update((b"traceparent", b"tracestate"))
    lines = [method + b" " + target + b" HTTP/1.1"]
    kept = zip(raw, headers, strict=True)
    lines += [name + b": " + value for (name, _), (low, value) in kept if low not in dropped]
    return b"\r\n".join(lines) + b"\r\n"
