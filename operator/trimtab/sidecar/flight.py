"""One generation (or other request) at the engine and all who wait for its answer.

A flight belongs to no client: whoever asked first is merely its first subscriber. It ends when the engine's answer
ends, or when the last subscriber has left.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection
from time import monotonic, time
from typing import TYPE_CHECKING

from trimtab.sidecar.admission import Ticket
from trimtab.sidecar.engine import EngineConnection, ResponseHead
from trimtab.sidecar.errors import REASONS, Failure
from trimtab.sidecar.head import HOP_BY_HOP, Head
from trimtab.sidecar.interfaces import Call, Entry, Key, Rejected
from trimtab.sidecar.observe import StreamWatch, json_timings, json_tokens, stream_error

if TYPE_CHECKING:
    from trimtab.sidecar.exchange import Exchange
    from trimtab.sidecar.gateway import Gateway

log = logging.getLogger(__name__)

_HOLD_LIMIT = 64 * 1024
RETRYABLE = frozenset({424, 429, 500, 502, 503, 504})


def traceparent() -> bytes:
    """A new W3C trace context, not sampled: nobody upstream of us asked for a trace."""
    return b"00-%032x-%016x-00" % (random.getrandbits(128) or 1, random.getrandbits(64) or 1)


def request_bytes(head: Head, body: bytes) -> bytes:
    """What the engine is sent: end-to-end fields as the client sent them, a length of our own, a trace context."""
    trace = b"" if head.traced else b"traceparent: " + traceparent() + b"\r\n"
    if body or head.method not in (b"GET", b"HEAD", b"OPTIONS", b"DELETE"):
        return b"%s%scontent-length: %d\r\n\r\n%s" % (head.forward, trace, len(body), body)
    return b"%s%s\r\n" % (head.forward, trace)


class Flight:
    """See the module. Implements engine.Receiver."""

    def __init__(self, gateway: Gateway, head: Head, body: bytes, call: Call | None, key: Key | None) -> None:
        self.gateway = gateway
        self.head = head
        self.body = body
        self.call = call
        self.key = key  # set: the answer may be stored
        self.shared = False  # whether it stands in the table of flights that others may join
        self.subscribers: list[Exchange] = []
        self.head_only = head.method == b"HEAD"
        self.connection: EngineConnection | None = None
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self.response: ResponseHead | None = None
        self.fields = b""  # status line and end-to-end fields, without framing
        self.deadline = float("inf")
        self.ticket: Ticket | None = None
        self.recorded: list[bytes] | None = [] if key is not None else None
        self._recorded_size = 0
        self._watch: StreamWatch | None = None
        self._held: bytes | None = None
        self._tail = b""
        self._settlement: tuple[float, float, float] | None = None  # begin and end, and the end by the calendar
        self._paused = False
        self._healthy = False  # the engine generates
        self.over = False

    # --- before the engine

    def lookup(self) -> None:
        """Ask the slower tiers, then launch."""
        self.task = self.gateway.spawn(self._lookup())

    async def _lookup(self) -> None:
        try:
            entry = await self.gateway.find_remote(self.key, self.call) if self.key and self.call else None
        except Exception:  # a broken tier is a miss
            log.exception("a tier failed")
            entry = None
        self.task = None
        if self.cancelled:
            return
        takers: list[Exchange] = []
        if entry is not None:
            now = time()
            takers = [e for e in self.subscribers if self.gateway.acceptable(entry, e.head.control, now)]
        # Those whose directives forbid this entry still want an answer.
        self.subscribers = [exchange for exchange in self.subscribers if exchange not in takers]
        if self.subscribers:
            self.launch()
        else:
            self._end()
        if entry is not None:
            for exchange in takers:
                exchange.send_entry(entry)

    def launch(self) -> None:
        """Ask for admission (generating routes) and then the engine."""
        only_cached = [exchange for exchange in self.subscribers if exchange.head.control.only_if_cached]
        for exchange in only_cached:
            exchange.fail(Failure(504, "only_if_cached", "only-if-cached: there is no cached answer"))
        if only_cached and not self.subscribers:
            return
        if self.key is not None:
            self.gateway.metrics.misses.add()
        if not self.head.route.generates:
            self._send()
            return
        units = self.call.units if self.call is not None else 1
        self.ticket = Ticket(units, (self.head.priority, self.head.scope), self._admitted, self._rejected)
        self.gateway.admission.enter(self.ticket, monotonic())

    def _admitted(self) -> None:
        if self.ticket is not None:
            self.gateway.queue_wait.observe(max(0.0, monotonic() - self.ticket.since))
        self._send()

    def _rejected(self, failure: Failure) -> None:
        self.gateway.metrics.rejected.add(failure.reason or failure.kind)
        self.fail(failure)

    def _send(self) -> None:
        self.deadline = monotonic() + self.gateway.config.engine.response_timeout_seconds
        self.gateway.engine.request(self, request_bytes(self.head, self.body))

    # --- subscribers

    def join(self, exchange: Exchange) -> None:
        """Add a subscriber; one that comes late gets what has arrived so far."""
        self.subscribers.append(exchange)
        if self.response is not None and self._held is None and self.recorded is not None:
            data = b"".join(self.recorded)
            if data:
                exchange.deliver(self, data, False)
        if self._paused:
            self.update_pause()

    @property
    def streaming(self) -> bool:
        """Whether the answer is a stream of events."""
        return self._watch is not None

    @property
    def joinable(self) -> bool:
        """Whether a newcomer can still get the whole answer."""
        if self.over or self.recorded is None:
            return False
        return self.response is None or self.response.status == 200

    def leave(self, exchange: Exchange) -> None:
        """A subscriber is gone; without any, the engine is told to stop."""
        if exchange in self.subscribers:
            self.subscribers.remove(exchange)
        if not self.subscribers and not self.over:
            self.cancel()
        elif self._paused:
            self.update_pause()

    def update_pause(self) -> None:
        """Read from the engine while at least one subscriber can take more."""
        paused = bool(self.subscribers) and all(exchange.client.write_paused for exchange in self.subscribers)
        if paused == self._paused:
            return
        self._paused = paused
        if self.connection is not None:
            if paused:
                self.connection.pause()
            else:
                self.connection.resume()
                self._extend()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()
            self.task = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self._end()

    def _end(self) -> None:
        """Give everything back; idempotent."""
        self.over = True
        self.gateway.landed(self)
        if self.ticket is not None:
            ticket, self.ticket = self.ticket, None
            self.gateway.admission.leave(ticket, monotonic())

    # --- from the engine

    def _extend(self) -> None:
        self.deadline = monotonic() + self.gateway.config.engine.silence_timeout_seconds

    def on_answer(self, head: ResponseHead | None, data: bytes, done: bool) -> None:
        """Pass a piece of the answer on; see engine.Receiver."""
        if self.over:
            return
        now = monotonic()
        self.deadline = now + self.gateway.config.engine.silence_timeout_seconds
        if head is not None:
            self._open(head)
        if self._healthy:
            self.gateway.last_answer = now
        if self._held is not None:
            data = self._held + data
            self._held = data
            if not self._release(data, done):
                return
        if data:
            self._look_at(data, now)
        if not done:
            for exchange in list(self.subscribers):
                exchange.deliver(self, data, False)
            return
        start = self.subscribers[0].start if self.subscribers else now
        self._end()
        for exchange in list(self.subscribers):
            exchange.deliver(self, data, True)
        self._settlement = (start, now, time())
        self.gateway.settle_later(self)

    def _open(self, head: ResponseHead) -> None:
        self.response = head
        self.fields = _fields(head)
        self._healthy = head.status == 200 and self.head.route.generates
        if head.status != 200:
            self.recorded = None
            if head.status >= 500 or head.status in (424, 429):
                self.gateway.metrics.upstream_errors.add("status")
            if head.status in RETRYABLE:
                self._detach_followers()
        kind = head.get(b"content-type") or b""
        if kind.startswith(b"text/event-stream"):
            self._watch = StreamWatch()
            if head.status == 200 and self.head.route.generates:
                self._held = b"" if self.gateway.config.engine.stream_errors == "status" else None

    def _release(self, data: bytes, done: bool) -> bool:
        """Whether the beginning of a stream may go out: it does not start with an error."""
        if not done and b"\n\n" not in data and len(data) < _HOLD_LIMIT and data[:1] != b":":
            return False
        self._held = None
        failure = stream_error(data.partition(b"\n\n")[0], self.head.route)
        if failure is None:
            return True
        self.gateway.metrics.upstream_errors.add("event")
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self.fail(failure)
        return False

    def _look_at(self, data: bytes, now: float) -> None:
        if self._watch is not None:
            self._watch.feed(data, now)
            if b'{"error":' in data:  # within a JSON string the quotes would be escaped
                self.gateway.metrics.upstream_errors.add("event")
        else:
            self._tail = data
        if self.recorded is not None:
            self._record(data)

    def _record(self, data: bytes) -> None:
        if self.recorded is None:
            return
        self._recorded_size += len(data)
        if self._recorded_size > self.gateway.config.cache.exact.max_entry_bytes:
            self.recorded = None
            self.gateway.metrics.not_stored.add("size")
            return
        self.recorded.append(data)

    def _detach_followers(self) -> None:
        """The first one's failure is not theirs: they try again."""
        for exchange in self.subscribers[1:]:
            if exchange.may_retry:
                self.subscribers.remove(exchange)
                self.gateway.loop.call_soon(exchange.retry)

    def on_broken(self, kind: str, message: str) -> None:
        """See engine.Receiver."""
        if self.over:
            return
        self.gateway.metrics.upstream_errors.add(kind)
        if kind == "connect":
            self.fail(Failure(503, "engine_unavailable", message, retry_after=1))
        else:
            self.fail(Failure(502, "engine_" + kind, message))

    def expired(self, now: float) -> None:
        """The engine has been silent for too long."""
        self.gateway.metrics.upstream_errors.add("timeout")
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self.cancelled = True  # a connection still being made is not used
        self.fail(Failure(504, "engine_timeout", "the engine did not answer in time"))

    def fail(self, failure: Failure) -> None:
        """Answer all subscribers with an error; those who joined and have got nothing yet try again on their own."""
        self._end()
        first = self.subscribers[0] if self.subscribers else None
        for exchange in list(self.subscribers):
            if exchange is not first and exchange.may_retry:
                self.subscribers.remove(exchange)
                self.gateway.loop.call_soon(exchange.retry)
            else:
                exchange.fail(failure)

    def settle(self) -> None:
        """Measure the finished answer and keep it if it may be kept: nothing a client has to wait for. Idempotent."""
        if self._settlement is None:
            return
        (start, now, created), self._settlement = self._settlement, None
        self.gateway.settled(self)
        head = self.response
        if head is None:
            return
        if head.status == 200 and self.head.route.generates:
            self._measure(head, start, now)
        if self.recorded is None or self.key is None or self.call is None:
            return
        make = self.gateway.parts.make_entry
        if make is None:
            return
        ttl = self.gateway.config.cache.exact.ttl_seconds
        try:
            entry = make(self.call, head.status, head.low, b"".join(self.recorded), now=created, ttl=ttl)
            if isinstance(entry, Rejected):
                self.gateway.metrics.not_stored.add(entry.reason)
            else:
                self._store(self.key, self.call, entry)
        except Exception:  # the client has its answer; a fault of the cache must not keep others from being settled
            log.exception("an answer could not be kept")
            self.gateway.metrics.not_stored.add("internal")

    def _store(self, key: Key, call: Call, entry: Entry) -> None:
        parts = self.gateway.parts
        if parts.memory is not None:
            parts.memory.put(key, entry, time())
        if parts.remote is not None:
            parts.remote.put(key, entry)
        if parts.semantic is not None:
            parts.semantic.learn(key, call, entry)

    def _measure(self, head: ResponseHead, start: float, now: float) -> None:
        metrics = self.gateway.metrics
        watch = self._watch
        if watch is not None:
            tokens_in, tokens_out = watch.tokens()
            if watch.events:
                metrics.ttft.cell("miss", "stream").observe(watch.first - start)
                if tokens_out > 1 and watch.events > 1:
                    metrics.tpot.cell("miss", "stream").observe((watch.last - watch.first) / (tokens_out - 1))
        else:
            tokens_in, tokens_out = json_tokens(head, self._tail)
            timings = json_timings(head, tokens_out)
            if timings is not None:
                waited = max(0.0, now - start - (_total(head) or 0.0))
                metrics.ttft.cell("miss", "headers").observe(waited + timings[0])
                if tokens_out > 1:
                    metrics.tpot.cell("miss", "headers").observe(timings[1])
        metrics.tokens.add("in", amount=tokens_in)
        metrics.tokens.add("out", amount=tokens_out)


def _total(head: ResponseHead) -> float | None:
    value = head.get(b"x-total-time")
    return int(value) / 1000 if value is not None and value.isdigit() else None


def _fields(head: ResponseHead) -> bytes:
    dropped: Collection[bytes] = HOP_BY_HOP
    for name, value in head.low:
        if name == b"connection":
            dropped = {*dropped, *(token.strip().lower() for token in value.split(b","))}
    reason = head.reason or REASONS.get(head.status, "").encode()
    lines = [b"HTTP/1.1 %d %s" % (head.status, reason)]
    named = zip(head.low, head.headers, strict=True)
    lines += [name + b": " + value for (low, _), (name, value) in named if low not in dropped]
    lines.append(b"")
    return b"\r\n".join(lines)
