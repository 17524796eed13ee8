"""Connections to the engine: a pool of kept-alive HTTP/1.1 connections, one request on each at a time."""

import asyncio
from collections import deque
from time import monotonic
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from trimtab.sidecar.config import Engine

MAX_HEAD = 64 * 1024


class ResponseHead:
    """Status line and fields of an answer."""

    __slots__ = ("chunked", "headers", "length", "low", "reason", "status")

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []  # names as sent
        self.low: list[tuple[bytes, bytes]] = []  # names in lower case
        self.length: int | None = None
        self.chunked = False

    def get(self, name: bytes) -> bytes | None:
        """Value of the first field with this lower-case name."""
        for found, value in self.low:
            if found == name:
                return value
        return None

    @property
    def bodiless(self) -> bool:
        """Whether the status forbids a body."""
        return self.status in (204, 304)


class Receiver(Protocol):
    """Who asked."""

    head_only: bool  # a HEAD request: the answer ends with its head
    connection: "EngineConnection | None"  # set while a connection serves the request
    cancelled: bool

    def on_answer(self, head: ResponseHead | None, data: bytes, done: bool) -> None:
        """The head (once), a piece of the body without transfer coding, or both; `done` with the last piece."""

    def on_broken(self, kind: str, message: str) -> None:
        """No (further) answer will come: `connect`, `reset`, `protocol`."""


class EngineConnection(asyncio.Protocol):
    """One connection; created by the pool."""

    def __init__(self, pool: "EnginePool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._receiver: Receiver | None = None
        self._payload = b""
        self._reused = False
        self._answered = False
        self._reading = True
        self._keep = False
        self.idle_since = 0.0
        self._reset()

    def _reset(self) -> None:
        self._head = ResponseHead()
        self._head_size = 0
        self._head_ready = False
        self._pieces: list[bytes] = []
        self._done = False

    # --- use

    def begin(self, receiver: Receiver, payload: bytes, *, reused: bool) -> None:
        """Send a request."""
        self._receiver = receiver
        receiver.connection = self
        self._payload = payload
        self._reused = reused
        self._answered = False
        if self._transport is not None:
            self._transport.write(payload)

    @property
    def usable(self) -> bool:
        """Whether a further request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Give up the request: the engine sees a closed connection and stops generating."""
        self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading until resume(): the client does not keep up."""
        if self._reading and self.usable and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._reading:
            self._reading = True
            if self.usable and self._transport is not None:
                self._transport.resume_reading()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # nothing was asked
            self.abort()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break("protocol", f"the engine's answer is no HTTP/1.1: {error}")
            return
        self._deliver()

    def _deliver(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        head = None
        if self._head_ready:
            head, self._head_ready = self._head, False
            if receiver.head_only:
                self._done = True
        if not self._done:
            if head is not None or data:
                receiver.on_answer(head, data, False)
            return
        self._receiver = receiver.connection = None
        reusable = self._keep and not receiver.head_only
        self._reset()
        if reusable and self.usable:
            self.resume()
            self._pool.give_back(self)
        elif self._transport is not None:
            self._transport.close()
        receiver.on_answer(head, data, True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._pool.forget(self)
        receiver = self._receiver
        if receiver is None:
            return
        head = self._head
        if head.status and head.length is None and not head.chunked and exc is None:
            self._receiver = receiver.connection = None
            receiver.on_answer(None, b"", True)  # the end of the connection is the end of the body
        elif self._reused and not self._answered and not receiver.cancelled:
            # The engine closed a kept-alive connection while we sent: it has not seen the request.
            self._receiver = receiver.connection = None
            self._pool.connect(receiver, self._payload)
        else:
            self._break("reset", "the engine closed the connection before the end of its answer")

    def _break(self, kind: str, message: str) -> None:
        receiver, self._receiver = self._receiver, None
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.connection = None
            receiver.on_broken(kind, message)

    # --- llhttp

    def on_message_begin(self) -> None:
        self._head = ResponseHead()
        self._head_size = 0

    def on_status(self, reason: bytes) -> None:
        self._head.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            raise ValueError("the head is too long")
        low = name.lower()
        self._head.headers.append((name, value))
        self._head.low.append((low, value))
        if low == b"content-length":
            self._head.length = int(value)
        elif low == b"transfer-encoding":
            self._head.chunked = True

    def on_headers_complete(self) -> None:
        self._head.status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()  # llhttp forgets it with the message's end
        if self._head.bodiless:
            self._head.length = 0
        if self._head.status >= 200:
            self._head_ready = True

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._head.status >= 200:
            self._done = True


class EnginePool:
    """Hands out connections, newest first, so that surplus ones grow old and are closed."""

    def __init__(self, url: str, settings: Engine, loop: asyncio.AbstractEventLoop) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"upstream must be http://host:port, not {url!r}")
        self.host = parts.hostname
        self.port = parts.port or 80
        self._settings = settings
        self._loop = loop
        self._idle: deque[EngineConnection] = deque()
        self._all: set[EngineConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def open_connections(self) -> int:
        """Connections open now, busy or idle."""
        return len(self._all)

    def request(self, receiver: Receiver, payload: bytes) -> None:
        """Send `payload` on a kept connection or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.begin(receiver, payload, reused=True)
                return
        self.connect(receiver, payload)

    def connect(self, receiver: Receiver, payload: bytes) -> None:
        """Send `payload` on a new connection."""
        task = self._loop.create_task(self._connect(receiver, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, receiver: Receiver, payload: bytes) -> None:
        timeout = self._settings.connect_timeout_seconds
        try:
            async with asyncio.timeout(timeout):
                _, connection = await self._loop.create_connection(lambda: EngineConnection(self), self.host, self.port)
        except TimeoutError:
            if not receiver.cancelled:
                receiver.on_broken("connect", f"the engine did not accept a connection within {timeout:g} s")
            return
        except OSError as error:
            if not receiver.cancelled:
                receiver.on_broken("connect", f"the engine accepts no connection: {error.strerror or error}")
            return
        self._all.add(connection)
        if receiver.cancelled:
            self.give_back(connection)
        elif connection.usable:
            connection.begin(receiver, payload, reused=False)
        else:
            receiver.on_broken("reset", "the engine closed the connection at once")

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request."""
        if len(self._idle) >= self._settings.max_idle_connections:
            connection.abort()
            return
        connection.idle_since = monotonic()
        self._idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """A connection was closed."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long."""
        while self._idle and now - self._idle[0].idle_since > self._settings.idle_timeout_seconds:
            self._idle.popleft().abort()

    async def close(self) -> None:
        """Close everything."""
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._all):
            connection.abort()
        await asyncio.sleep(0)
