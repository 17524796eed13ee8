"""A client's connection: requests in, one at a time, answers out."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from trimtab.sidecar.body import ChunkedBody, SizedBody
from trimtab.sidecar.errors import Failure, RefusedError, response_bytes
from trimtab.sidecar.head import Head
from trimtab.sidecar.hits import MAX_WHOLE
from trimtab.sidecar.interfaces import Route

if TYPE_CHECKING:
    from trimtab.sidecar.exchange import Exchange
    from trimtab.sidecar.gateway import Gateway

_END = b"\r\n\r\n"
_MAX_PIPELINED = 64 * 1024
_NEVER = float("inf")
_LINGER = 2.0  # seconds


class ClientConnection(asyncio.Protocol):
    """See the module. A second request that arrives early waits, unread, until the first is answered."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._heads = gateway.heads
        self._memo = gateway.heads.memo
        self._hits = gateway.hits
        self._limits = gateway.config.limits
        self._transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.deadline = _NEVER
        self.write_paused = False
        self._in = bytearray()
        self._head: Head | None = None
        self._body: SizedBody | ChunkedBody | None = None
        self._held = 0  # bytes of the unfinished body accounted in gateway.buffered
        self._read_paused = False
        self._advancing = False
        self._closing = False
        self._fresh = False  # a request came since the deadline was set: cheaper than setting it each time
        self._waiting_for = "request"  # what `deadline` is about: request, head, body, write

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._gateway.clients.add(self)
        if len(self._gateway.clients) > self._limits.max_connections:
            self._refuse(Failure(503, "connections", "too many connections", retry_after=1))
            return
        self._await("request", self._limits.idle_timeout_seconds)

    def data_received(self, data: bytes) -> None:
        quiet = self.exchange is None and not self._in and self._body is None
        if quiet and not self._closing and not self.write_paused:
            if len(data) <= MAX_WHOLE and self._hits.again(self, data):
                self._fresh = True
                return
            end = data.find(_END)
            head = self._memo.get(data[: end + 4]) if end >= 0 else None
            if head is not None and head.length == len(data) - end - 4:
                self._fresh = True
                key = self._gateway.handle(self, head, data[end + 4 :])
                if key is not None:
                    self._hits.learn(data, head, key)
                return
        if self._closing:
            return
        if self._body is not None:
            self._feed_body(data)
        else:
            self._in += data
        self._advance()
        if len(self._in) > _MAX_PIPELINED + self._limits.max_head_bytes and not self._read_paused:
            self._read_paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # a client that has closed its side is gone

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.clients.discard(self)
        self._transport = None
        self._closing = True
        self._release()
        if self.exchange is not None:
            self.exchange.client_gone()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.exchange is not None:
            self.exchange.write_state_changed()
        self._await("write", self._limits.write_timeout_seconds)

    def resume_writing(self) -> None:
        self.write_paused = False
        self.deadline = _NEVER
        if self.exchange is not None:
            self.exchange.write_state_changed()
        elif not self._closing:
            self._await("request", self._limits.idle_timeout_seconds)
            self._advance()

    # --- reading

    def _await(self, what: str, seconds: float) -> None:
        self._waiting_for = what
        self.deadline = monotonic() + seconds

    def _advance(self) -> None:
        """Take as many requests as can be answered now out of the input."""
        if self._advancing:  # an answer given at once has called next(): the loop below goes on
            return
        self._advancing = True
        try:
            while self._in and self.exchange is None and not self._closing and not self.write_paused:
                if self._body is None and not self._read_head():
                    break
                if self._body is not None and self._in:
                    data = bytes(self._in)
                    self._in.clear()
                    self._feed_body(data)
        except RefusedError as refused:
            self._refuse(refused.failure)
        finally:
            self._advancing = False
        if self._read_paused and len(self._in) < _MAX_PIPELINED and self._transport is not None and not self._closing:
            self._read_paused = False
            self._transport.resume_reading()

    def _read_head(self) -> bool:
        """Whether a head was there; a request without a body is handled at once."""
        while self._in[:2] == b"\r\n":  # RFC 9112, 2.2: an empty line before a request is ignored
            del self._in[:2]
        end = self._in.find(_END)
        limit = self._limits.max_head_bytes
        if end > limit or (end < 0 and len(self._in) > limit):
            raise RefusedError(431, "headers", f"the head is longer than {limit} bytes")
        if end < 0:
            if self._in and self._waiting_for != "head":
                self._await("head", self._limits.head_timeout_seconds)
            return False
        raw = bytes(self._in[: end + 4])
        del self._in[: end + 4]
        head = self._memo.get(raw) or self._heads.read(raw)
        if head.length == 0:
            self._start(head, b"")
            return True
        self._open_body(head)
        return True

    def _open_body(self, head: Head) -> None:
        limit = self._limits.max_body_bytes
        if head.length > limit:
            raise RefusedError(413, "body_size", f"the body is longer than {limit} bytes")
        self._head = head
        self._body = ChunkedBody(limit) if head.length < 0 else SizedBody(head.length)
        self._account()
        self._await("body", self._limits.body_timeout_seconds)
        if head.expects and not self._in:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _account(self) -> None:
        """Keep the gateway's sum of held bodies; refuse when it is too large."""
        if self._body is None:
            return
        gateway = self._gateway
        gateway.buffered += self._body.held - self._held
        self._held = self._body.held
        if gateway.buffered > self._limits.max_buffered_bytes:
            raise RefusedError(503, "memory", "too many request bodies are held at this time")

    def _release(self) -> None:
        self._gateway.buffered -= self._held
        self._held = 0
        self._body = None
        self._head = None

    def _feed_body(self, data: bytes) -> None:
        body, head = self._body, self._head
        if body is None or head is None:
            return
        try:
            rest = body.feed(data)
            self._account()
        except RefusedError as refused:
            self._refuse(refused.failure)
            return
        if rest is None:
            return
        self._in[:0] = rest
        whole = body.take()
        self._release()
        self._start(head, whole)

    def _start(self, head: Head, body: bytes) -> None:
        self.deadline = _NEVER
        self._waiting_for = "answer"
        self._gateway.handle(self, head, body)
        if self.exchange is None and self._waiting_for == "answer":
            self._await("request", self._limits.idle_timeout_seconds)

    def _refuse(self, failure: Failure) -> None:
        """Answer a request that cannot be understood or taken, and close."""
        self._gateway.metrics.rejected.add(failure.reason or failure.kind)
        route = self._head.route if self._head is not None else Route.OTHER
        self._gateway.metrics.requests.add(route.value, str(failure.status), "bypass")
        self._release()
        self._in.clear()
        self.write(response_bytes(failure, route, close=True))
        self._linger()

    # --- writing, for exchanges

    @property
    def unsent(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def write(self, data: bytes) -> None:
        """Send bytes; ignored when the connection is closed."""
        if self._transport is not None:
            self._transport.write(data)

    def next(self) -> None:
        """The answer is complete; go on with what has arrived meanwhile."""
        if not self._closing and not self.write_paused:
            self._await("request", self._limits.idle_timeout_seconds)
            if self._in:
                self._advance()

    def close(self) -> None:
        """Close once everything written has been sent."""
        self._closing = True
        self._await("write", self._limits.write_timeout_seconds)
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close, but swallow what still arrives: closing with unread input would make the kernel discard our answer."""
        self._closing = True
        self._await("write", _LINGER)
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is being read or answered."""
        return self.exchange is None and not self._in and self._body is None

    def expired(self, now: float) -> None:
        """The deadline has passed."""
        if self._waiting_for in ("head", "body") and not self._closing:
            self._refuse(Failure(408, "slow_client", "the request did not arrive in time"))
        elif self._waiting_for == "write":
            self.abort()
        elif self._waiting_for == "request" and self._fresh:
            self._fresh = False
            self.deadline = now + self._limits.idle_timeout_seconds
        elif self._waiting_for == "request" and self.idle:
            self.close()
        else:
            self.deadline = now + 1.0
