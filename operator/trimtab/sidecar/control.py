"""Request directives of RFC 9111 and the answers' `Cache-Status` of RFC 9211."""

from dataclasses import dataclass

from trimtab.sidecar.interfaces import Headers

CACHE_NAME = b"trimtab"
"""Our name in Cache-Status."""
CACHE_HEADER = b"x-trimtab-cache"
"""`sampled`: this client accepts one sampled answer for all equal requests."""


@dataclass(frozen=True, slots=True)
class Control:
    """What a client allows the cache to do with its request."""

    read: bool = True
    write: bool = True
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int | None = None
    sampled: bool = False

    def accepts(self, age: float, remaining: float) -> bool:
        """Whether an entry of this age (s) that has so many seconds left will do."""
        if self.max_age is not None and age > self.max_age:
            return False
        return self.min_fresh is None or remaining >= self.min_fresh


PLAIN = Control()


def _seconds(text: bytes) -> int | None:
    text = text.strip(b'" \t')
    # A value that is no delta-seconds makes the directive unusable: treat the answer as too old (RFC 9111, 4.2.1).
    return min(int(text), 2**31) if text.isdigit() and len(text) < 20 else 0


def parse_control(headers: Headers) -> Control:
    """Directives of all `Cache-Control` fields; `Pragma: no-cache` counts when there is none."""
    fields = [value for name, value in headers if name == b"cache-control"]
    if not fields:
        fields = [b"no-cache" for name, value in headers if name == b"pragma" and b"no-cache" in value.lower()]
    sampled = any(name == CACHE_HEADER and value.lower() == b"sampled" for name, value in headers)
    if not fields and not sampled:
        return PLAIN
    directives: dict[bytes, bytes] = {}
    for item in b",".join(fields).split(b","):
        name, _, value = item.strip().partition(b"=")
        directives[name.lower()] = value
    no_store = b"no-store" in directives
    max_age = _seconds(directives[b"max-age"]) if b"max-age" in directives else None
    return Control(
        read=not (no_store or b"no-cache" in directives or max_age == 0),
        write=not no_store,
        only_if_cached=b"only-if-cached" in directives,
        max_age=max_age,
        min_fresh=_seconds(directives[b"min-fresh"]) if b"min-fresh" in directives else None,
        sampled=sampled,
    )


def hit_status(remaining: float, *, tier: str = "memory", similarity: float | None = None) -> bytes:
    """Header line for an answer from the cache; `remaining` seconds of freshness."""
    line = b"cache-status: %s; hit; ttl=%d" % (CACHE_NAME, remaining)
    if tier != "memory":
        line += b"; detail=" + tier.encode()
    if similarity is not None:
        line += b"\r\nx-trimtab-similarity: %.4f" % similarity
    return line + b"\r\n"


def forward_status(reason: bytes, *, collapsed: bool = False, detail: str = "") -> bytes:
    """Header line for an answer from the engine; `reason` is a token such as uri-miss, request, bypass."""
    line = b"cache-status: %s; fwd=%s" % (CACHE_NAME, reason)
    if collapsed:
        line += b"; collapsed"
    if detail:
        line += b"; detail=" + detail.encode("ascii", "replace").replace(b" ", b"-")
    return line + b"\r\n"
