"""One client's request that the fast path could not answer: from its body to the last byte of its answer."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic, time
from typing import TYPE_CHECKING

from trimtab.sidecar.control import forward_status, hit_status
from trimtab.sidecar.errors import Failure, response_bytes
from trimtab.sidecar.flight import Flight
from trimtab.sidecar.head import Head
from trimtab.sidecar.hits import fields
from trimtab.sidecar.interfaces import BadBodyError, Call, ContextRefused, Entry, Key, NotCacheable

if TYPE_CHECKING:
    from trimtab.sidecar.client import ClientConnection
    from trimtab.sidecar.gateway import Gateway

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
_MISS = forward_status(b"uri-miss")
_MAX_LAG = 1024 * 1024


class Exchange:
    """See the module."""

    def __init__(self, gateway: Gateway, client: ClientConnection, head: Head, body: bytes, start: float) -> None:
        self.gateway = gateway
        self.client = client
        self.head = head
        self.body = body
        self.start = start
        self.held = len(body)  # bytes accounted in gateway.buffered
        self.call: Call | None = None
        self.flight: Flight | None = None
        self.task: asyncio.Task[None] | None = None
        self.key: Key | NotCacheable | None = None
        self.cache = "bypass"  # label of the metrics
        self.extra = b""  # header lines of our own
        self._started = False
        self._chunked = False
        self._close = False
        self._attempts = 0
        self._over = False

    # --- finding an answer

    def begin(self) -> None:
        """Read the body and find out who can answer."""
        if not self.head.json:
            self._fly(None)
            return
        try:
            self.call = self.gateway.parts.read_call(self.head.route, self.body)
        except BadBodyError as error:
            self.gateway.metrics.rejected.add("body")
            self.fail(Failure(400, "validation", f"Input validation error: {error}"))
            return
        context = self.gateway.parts.context
        if context is not None and not context.unchanged(self.call):
            self.task = self.gateway.spawn(self._fit(self.call))
        else:
            self._identify(self.call, memo=True)

    async def _fit(self, call: Call) -> None:
        """Apply the context policy."""
        context = self.gateway.parts.context
        if context is None:
            return
        try:
            outcome = await context.apply(call, self.head.scope)
        except Exception:  # a fault of ours: without an answer the client would wait for ever
            log.exception("the context policy failed")
            self.task = None
            self.fail(Failure(500, "internal", "the context policy failed"))
            return
        self.task = None
        if self._over:
            return
        if isinstance(outcome, ContextRefused):
            self.gateway.metrics.context.add("refused")
            self.fail(Failure(422, "validation", outcome.message))
            return
        self.gateway.metrics.context.add("changed" if outcome.note else "unchanged")
        if outcome.note:
            self.extra = b"x-trimtab-context: " + outcome.note.encode("ascii", "replace") + b"\r\n"
            self.gateway.metrics.context_saved.add(amount=outcome.tokens_saved)
            self.call = outcome.call
            self.body = outcome.call.raw
        self._identify(outcome.call, memo=False)

    def _identify(self, call: Call, *, memo: bool) -> None:
        """Find the key, then the answer."""
        keyer, head = self.gateway.parts.keyer, self.head
        if keyer is None or head.keys is None:
            self._fly(None)
            return
        try:
            key = keyer.key(call, head.scope, store_sampled=head.control.sampled or self.gateway.stores_sampled)
        except Exception:  # a fault of the cache never costs an answer
            log.exception("a request could not be keyed")
            key = NotCacheable("internal")
        if memo:
            self.gateway.hits.remember(head, call.raw, key)
        self.key = key
        self.find()

    def find(self) -> None:
        """Look for an answer in memory and in flight, else make a flight."""
        key, control = self.key, self.head.control
        if not isinstance(key, Key):
            if control.only_if_cached:
                self.fail(Failure(504, "only_if_cached", "only-if-cached: the request cannot be cached"))
                return
            self.extra += forward_status(b"bypass", detail=key.reason if key is not None else "")
            self._fly(None)
            return
        if not control.read:
            self.extra += forward_status(b"request")
            self.cache = "miss" if control.write else "bypass"
            self._fly(key if control.write else None)
            return
        just_ended = self.gateway.unsettled_by_key.get(key.digest)
        if just_ended is not None:
            just_ended.settle()
        memory = self.gateway.parts.memory
        entry = memory.get(key, time()) if memory is not None else None
        if entry is not None and self.gateway.acceptable(entry, control, time()):
            self.send_entry(entry)
            return
        flight = self.gateway.flights.get(key.digest)
        if flight is not None and flight.joinable:
            self.cache = "coalesced"
            self.extra += forward_status(b"uri-miss", collapsed=True)
            self.flight = flight
            flight.join(self)
            return
        self.cache = "miss"
        self.extra += _MISS
        self._fly(key, shared=True)

    def _fly(self, key: Key | None, *, shared: bool = False) -> None:
        flight = self.flight = Flight(self.gateway, self.head, self.body, self.call, key)
        flight.subscribers.append(self)
        self.gateway.took_off(flight, shared=shared)
        if shared and self.gateway.has_remote:
            flight.lookup()
        else:
            flight.launch()

    @property
    def may_retry(self) -> bool:
        """Whether nothing was sent yet and tries are left."""
        return not self._started and not self._over and self._attempts < MAX_ATTEMPTS

    def retry(self) -> None:
        """The generation this one had joined failed: find another answer."""
        if self._over:
            return
        self._attempts += 1
        self.flight = None
        self.extra = b"".join(
            line + b"\r\n" for line in self.extra.split(b"\r\n") if line and not line.startswith(b"cache-status")
        )
        self.find()

    # --- answering

    def deliver(self, flight: Flight, data: bytes, done: bool) -> None:
        """Send a piece of a flight's answer."""
        parts = []
        if not self._started:
            self._started = True
            parts.append(self._head_of(flight, len(data) if done else None))
        if data and not flight.head_only:
            if self._chunked:
                parts += [b"%x\r\n" % len(data), data, b"\r\n"]
            else:
                parts.append(data)
        if done and self._chunked:
            parts.append(b"0\r\n\r\n")
        self.client.write(b"".join(parts))
        if done:
            self._complete(flight.response.status if flight.response is not None else 0)
        elif self.client.write_paused:
            if len(flight.subscribers) > 1 and self.client.unsent > _MAX_LAG:
                self.client.abort()  # too slow for the others who share this answer
            else:
                flight.update_pause()

    def _head_of(self, flight: Flight, whole: int | None) -> bytes:
        """The response head; `whole` is the body's length if all of it is here."""
        response = flight.response
        if response is None:
            raise RuntimeError("a piece of an answer came before its head")
        framing = b""
        length = response.length
        if length is None and not flight.head_only and not (response.chunked and self.head.http11):
            length = whole
        self._close = not self.head.keep_alive or self.gateway.draining
        if response.bodiless or (flight.head_only and length is None):
            pass
        elif length is not None and not (response.chunked and flight.head_only):
            framing = b"content-length: %d\r\n" % length
        elif self.head.http11:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        else:
            self._close = True  # HTTP/1.0: the end of the connection is the end of the body
        return b"".join((flight.fields, self.extra, framing, self._connection(), b"\r\n"))

    def _connection(self) -> bytes:
        if self._close:
            return b"connection: close\r\n"
        return b"" if self.head.http11 else b"connection: keep-alive\r\n"

    def send_entry(self, entry: Entry) -> None:
        """Answer from the cache."""
        if self._over:
            return
        self.extra = b"".join(
            line + b"\r\n" for line in self.extra.split(b"\r\n") if line and not line.startswith(b"cache-status")
        )
        now = time()
        self._close = not self.head.keep_alive or self.gateway.draining
        remaining = entry.created + entry.ttl - now
        self._started = True
        self.client.write(
            b"".join(
                (
                    fields(entry),
                    hit_status(remaining, tier=entry.tier, similarity=entry.similarity),
                    b"age: %d\r\n" % max(0, now - entry.created),
                    self.extra,
                    self._connection(),
                    b"\r\n",
                    entry.body,
                )
            )
        )
        self.cache = "hit"
        self.gateway.hits.count(self.head.route, entry, monotonic() - self.start)
        self._complete(200, counted=True)

    def fail(self, failure: Failure) -> None:
        """Answer with an error, or break off an answer that has begun."""
        if self._over:
            return
        if self._started:
            if self._chunked and self.flight is not None and self.flight.streaming:
                event = failure.event(self.head.route)
                self.client.write(b"%x\r\n%s\r\n" % (len(event), event))
            # Without its last chunk the answer is visibly incomplete, whatever the client makes of the event.
            self._end("499" if failure.status == 499 else str(failure.status))
            self.client.close()
            return
        self._started = True
        self._close = not self.head.keep_alive or self.gateway.draining
        head_only = self.head.method == b"HEAD"
        self.client.write(
            response_bytes(failure, self.head.route, close=self._close, head_only=head_only, extra=self.extra)
        )
        self._complete(failure.status)

    def _complete(self, status: int, *, counted: bool = False) -> None:
        self._end(None if counted else str(status))
        if self._close:
            self.client.close()
        else:
            self.client.next()

    def _end(self, code: str | None) -> None:
        """Leave everything; counts the request unless `code` is None."""
        if self._over:
            return
        self._over = True
        if self.task is not None:
            self.task.cancel()
            self.task = None
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.leave(self)
        route = self.head.route
        if code is not None:
            self.gateway.metrics.requests.add(route.value, code, self.cache)
            if route.generates and code == "200":
                label = "hit" if self.cache == "coalesced" else "miss"
                self.gateway.metrics.duration.cell(label).observe(monotonic() - self.start)
        self.client.exchange = None
        self.gateway.exchange_ended(self)

    def client_gone(self) -> None:
        """The client has closed its connection."""
        if not self._over:
            self.gateway.metrics.disconnects.add()
            self._end("499")

    def write_state_changed(self) -> None:
        """The client can take more, or less."""
        if self.flight is not None:
            self.flight.update_pause()
