"""The way of a hit: nothing but dictionary look-ups between a request's bytes and its answer's.

Three memos, from the general to the particular, each of a pure function and therefore never stale: head bytes to `Head`
(head.py), body bytes to `Key` for a scope and route, and whole request to both. All compare the bytes themselves, so
nothing can collide. An entry is still looked up in memory each time, with its expiry.
"""

from time import time
from typing import TYPE_CHECKING

from trimtab.sidecar.control import CACHE_NAME
from trimtab.sidecar.head import Head, KeyMap
from trimtab.sidecar.interfaces import Entry, Key, MemoryTier, NotCacheable, Route
from trimtab.sidecar.metrics import Cell, Metrics

if TYPE_CHECKING:
    from trimtab.sidecar.client import ClientConnection

MAX_KEYED_BODY = 64 * 1024
MAX_KEYED_BYTES = 32 * 1024 * 1024
MAX_WHOLE = 16 * 1024
MAX_WHOLE_BYTES = 16 * 1024 * 1024
_OVERHEAD = 300  # bytes of bookkeeping for one remembered key
_MAX_MAPS = 4096


class HitCells:
    """Series that a hit on one route touches."""

    __slots__ = ("requests", "tiers")

    def __init__(self, metrics: Metrics, route: Route) -> None:
        self.requests: Cell = metrics.requests.cell(route.value, "200", "hit")
        self.tiers: dict[str, Cell] = {tier: metrics.hits.cell(tier) for tier in ("memory", "redis", "semantic")}


class Hits:
    """Answers from memory, and what makes finding them quick."""

    def __init__(self, metrics: Metrics, memory: MemoryTier | None) -> None:
        self.on = True  # off while draining: then each answer must close its connection
        self._memory = memory
        self._whole: dict[bytes, tuple[Key, HitCells]] = {}
        self._whole_bytes = 0
        self._maps: dict[tuple[bytes, Route, bool], KeyMap] = {}
        self._keyed_bytes = 0
        self._saved = metrics.tokens.cell("saved")
        self._duration = metrics.duration.cell("hit")
        self._ttft = metrics.ttft.cell("hit", "stream")
        self._cells = {route: HitCells(metrics, route) for route in Route if route.generates}

    # --- answering

    def again(self, client: "ClientConnection", request: bytes) -> bool:
        """Answer a whole request whose exact bytes were answered from memory before; whether it could be done."""
        known = self._whole.get(request)
        if known is None or not self.on or self._memory is None:
            return False
        now = time()
        entry = self._memory.get(known[0], now)
        if entry is None:
            return False
        self._send(client, entry, known[1], now)
        return True

    def answer(self, client: "ClientConnection", head: Head, body: bytes) -> Key | None:
        """Answer a request on a body seen before; its key if it was answered."""
        keys = head.keys
        if keys is None or not head.plain or not self.on or self._memory is None:
            return None
        key = keys.get(body)
        if not isinstance(key, Key) or not head.keep_alive or not head.http11:
            return None
        now = time()
        entry = self._memory.get(key, now)
        if entry is None:
            return None
        self._send(client, entry, self._cells[head.route], now)
        return key

    def _send(self, client: "ClientConnection", entry: Entry, cells: HitCells, now: float) -> None:
        age = now - entry.created
        client.write(
            b"%scache-status: %s; hit; ttl=%d\r\nage: %d\r\n\r\n%s"
            % (entry.wire or fields(entry), CACHE_NAME, entry.ttl - age, age if age > 0 else 0, entry.body)
        )
        self._count(cells, entry, max(time() - now, 0.0))

    def count(self, route: Route, entry: Entry, seconds: float) -> None:
        """Metrics of an answer from any tier."""
        self._count(self._cells[route], entry, seconds)

    def _count(self, cells: HitCells, entry: Entry, seconds: float) -> None:
        cells.requests.value += 1
        cells.tiers[entry.tier].value += 1
        self._saved.value += entry.generated_tokens
        self._duration.observe(seconds)
        if entry.stream:
            self._ttft.observe(seconds)

    # --- remembering

    def learn(self, request: bytes, head: Head, key: Key) -> None:
        """Remember a whole request that was answered from memory."""
        if len(request) > MAX_WHOLE:
            return
        if self._whole_bytes > MAX_WHOLE_BYTES:
            self._whole.clear()
            self._whole_bytes = 0
        self._whole[request] = (key, self._cells[head.route])
        self._whole_bytes += len(request) + _OVERHEAD

    def key_map(self, where: tuple[bytes, Route, bool]) -> KeyMap:
        """Bodies keyed for (scope, route, whether sampled answers are wanted)."""
        if len(self._maps) > _MAX_MAPS:
            self._maps.clear()
        return self._maps.setdefault(where, {})

    def remember(self, head: Head, body: bytes, key: Key | NotCacheable) -> None:
        """Keep the key of a body: it depends on nothing but scope, route and bytes."""
        if head.keys is None or len(body) > MAX_KEYED_BODY or not isinstance(key, Key):
            return
        if self._keyed_bytes > MAX_KEYED_BYTES:
            for known in self._maps.values():
                known.clear()
            self._keyed_bytes = 0
        head.keys[body] = key
        self._keyed_bytes += len(body) + _OVERHEAD


def fields(entry: Entry) -> bytes:
    """Status line and fields of a cached answer, made once an entry."""
    if entry.wire is None:
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in entry.headers)
        entry.wire = b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n" % (lines, len(entry.body))
    return entry.wire
