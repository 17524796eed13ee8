"""Requests that the sidecar makes for itself: to the engine (summaries of long conversations, token counts, `/info`)
and to an embedding server."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from trimtab.sidecar.admission import Ticket
from trimtab.sidecar.config import Engine
from trimtab.sidecar.engine import EngineConnection, EnginePool, ResponseHead
from trimtab.sidecar.errors import Failure

if TYPE_CHECKING:
    from trimtab.sidecar.gateway import Gateway

MAX_ANSWER = 64 * 1024 * 1024  # bytes; token lists of a long prompt are the longest
_LOW = 2
_FLOW = b"trimtab side calls"
_UNLIMITED = frozenset({"/info", "/tokenize", "/chat_tokenize"})  # the engine generates nothing for them


class _Answer:
    """Collects one answer; implements engine.Receiver."""

    def __init__(self, future: asyncio.Future[tuple[int, bytes]]) -> None:
        self.head_only = False
        self.connection: EngineConnection | None = None
        self.cancelled = False
        self.future = future
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0

    def on_answer(self, head: ResponseHead | None, data: bytes, done: bool) -> None:
        """See engine.Receiver."""
        if head is not None:
            self._status = head.status
        self._parts.append(data)
        self._size += len(data)
        if self.future.done():
            return
        if self._size > MAX_ANSWER:
            self.future.set_exception(ConnectionError("the engine's answer is too long"))
        elif done:
            self.future.set_result((self._status, b"".join(self._parts)))

    def on_broken(self, kind: str, message: str) -> None:
        """See engine.Receiver."""
        if not self.future.done():
            self.future.set_exception(ConnectionError(message))


def _payload(pool: EnginePool, path: str, body: bytes) -> bytes:
    """POST of a JSON body, or GET when there is none."""
    head = b"%s %s HTTP/1.1\r\nhost: %s:%d\r\naccept: application/json\r\n" % (
        b"POST" if body else b"GET",
        path.encode(),
        pool.host.encode(),
        pool.port,
    )
    if body:
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return head + b"\r\n" + body


def _give_up(answer: _Answer) -> None:
    answer.cancelled = True
    connection, answer.connection = answer.connection, None
    if connection is not None:
        connection.abort()


class ServerCaller:
    """Implements `EngineCall` for another HTTP server than the engine. Belongs to the event loop of its first call."""

    def __init__(self, url: str, settings: Engine) -> None:
        self._url = url
        self._settings = settings
        self._pool: EnginePool | None = None

    async def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        if self._pool is None:
            self._pool = EnginePool(self._url, self._settings, loop)
        answer = _Answer(loop.create_future())
        try:
            self._pool.request(answer, _payload(self._pool, path, body))
            async with asyncio.timeout(self._settings.response_timeout_seconds):
                return await answer.future
        finally:
            _give_up(answer)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()


class SideCaller:
    """Implements `EngineCall` once a gateway is attached. Generations pass admission as one tenant of low priority."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None

    def attach(self, gateway: Gateway) -> None:
        """From now on calls go through this gateway's connections and admission."""
        self._gateway = gateway

    async def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        """POST of a JSON body, or GET when there is none. Raises OSError or TimeoutError."""
        gateway = self._gateway
        if gateway is None:
            raise ConnectionError("no engine yet")
        loop = asyncio.get_running_loop()
        answer = _Answer(loop.create_future())
        payload = _payload(gateway.engine, path, body)

        def admitted() -> None:
            gateway.engine.request(answer, payload)

        def rejected(failure: Failure) -> None:
            if not answer.future.done():
                answer.future.set_exception(ConnectionError(failure.message))

        ticket: Ticket | None = None
        try:
            if path in _UNLIMITED:
                admitted()
            else:
                ticket = Ticket(1, (_LOW, _FLOW), admitted, rejected)
                gateway.admission.enter(ticket, monotonic())
            async with asyncio.timeout(gateway.config.engine.response_timeout_seconds):
                return await answer.future
        finally:
            _give_up(answer)
            if ticket is not None:
                gateway.admission.leave(ticket, monotonic())
