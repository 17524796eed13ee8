"""The identity of an answer: a keyed BLAKE2b-256 over everything that can change it.

Covered, each with its length: version of the key, identity of the engine (model, revision, quantization, engine,
template), scope of the tenant, route, representation, canonical body. A change of the engine's identity so invalidates
all entries at once, and two tenants cannot meet in one entry. The secret keeps a shared store from being searched for
guessed prompts.
"""

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Literal

import orjson

from trimtab.sidecar.cache.cacheability import fetches_image, refusal
from trimtab.sidecar.cache.canonical import canonical_body
from trimtab.sidecar.config import Identity
from trimtab.sidecar.interfaces import Call, Key, NotCacheable, Route

KEY_VERSION = b"k1"
"""Changes with every change of what the digest covers."""
_MINUS_ZERO = re.compile(rb"[:\[,]\s*-0\s*[,\]}]")
_MAX_BASES = 4096
_HOLE = "\x00last user message"

Policy = Literal["deterministic", "all"]


class CanonicalKeyer:
    """Implements `Keyer` for one engine. Pure but for a bounded memo of hash states."""

    def __init__(
        self,
        identity: Identity,
        *,
        secret: bytes = b"",
        policy: Policy = "deterministic",
        partitioned: Callable[[bytes], bool] | None = None,
    ) -> None:
        """`partitioned`: the scopes for which `Key.partition` is computed too (the semantic tier needs it)."""
        fields = (identity.model, identity.revision, identity.quantization, identity.engine, identity.template)
        self.namespace = blake2b(
            _framed(KEY_VERSION, *(field.encode("utf-8", "surrogatepass") for field in fields)), digest_size=16
        ).digest()
        self._secret = blake2b(secret, digest_size=32).digest()
        self._all = policy == "all"
        self._partitioned = partitioned
        self._bases: dict[tuple[bytes, Route, bool], Any] = {}

    def key(self, call: Call, scope: bytes, *, store_sampled: bool = False) -> Key | NotCacheable:
        """See `Keyer.key`."""
        reason = refusal(call, store_sampled=store_sampled or self._all)
        if reason is not None:
            return NotCacheable(reason)
        body = canonical_body(call.route, call.body)
        if body is None:
            return NotCacheable("ambiguous")
        text = _dumped(body)
        # orjson writes an infinity as null, and `-0` was read as the integer 0 although serde reads a float.
        if text is None or (b"null" in text and _has_infinity(body)):
            return NotCacheable("number")
        # One byte is looked for much faster than several: most bodies have no minus and no exclamation mark.
        if 0x2D in call.raw and b"-0" in call.raw and _MINUS_ZERO.search(call.raw):
            return NotCacheable("number")
        if 0x21 in text and fetches_image(text):
            return NotCacheable("remote-image")
        base = self._base(scope, call.route, call.stream)
        state = base.copy()
        state.update(text)
        wanted = self._partitioned is not None and self._partitioned(scope)
        partition = self._partition(base, call.route, body) if wanted else b""
        return Key(state.digest(), call.stream, partition)

    def _base(self, scope: bytes, route: Route, stream: bool) -> Any:
        """The hash state before the body; the body comes last, so that it needs no length."""
        known = self._bases.get((scope, route, stream))
        if known is not None:
            return known
        state = blake2b(key=self._secret, digest_size=32)
        state.update(_framed(KEY_VERSION, self.namespace, scope, route.encode(), b"sse" if stream else b"json"))
        if len(self._bases) >= _MAX_BASES:
            self._bases.clear()
        self._bases[(scope, route, stream)] = state
        return state

    def _partition(self, base: Any, route: Route, body: dict[str, Any]) -> bytes:
        """Digest of all but the text of the last message; empty when that is no user's plain text."""
        if last_user_text(route, body) is None:
            return b""
        messages = body["messages"]
        hollow = {**body, "messages": [*messages[:-1], {**messages[-1], "content": _HOLE}]}
        text = _dumped(hollow)
        if text is None:
            return b""
        state = base.copy()
        state.update(b"partition\x00" + text)
        digest: bytes = state.digest()
        return digest


def last_user_text(route: Route, body: dict[str, Any]) -> str | None:
    """The plain text of the last message when it is a user's, else None."""
    messages = body.get("messages") if route is Route.CHAT else None
    last = messages[-1] if type(messages) is list and messages else None
    if type(last) is not dict or last.get("role") != "user":
        return None
    content = last.get("content")
    return content if type(content) is str else None


def _dumped(body: dict[str, Any]) -> bytes | None:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer of more than 64 bits, or a nesting beyond orjson's bound
        return None


def _has_infinity(value: Any) -> bool:
    if type(value) is float:
        return value in (float("inf"), float("-inf"))
    if type(value) is dict:
        return any(_has_infinity(item) for item in value.values())
    return type(value) is list and any(_has_infinity(item) for item in value)


def _framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
