"""Whether the engine can serve, asked at most about once a second however many ask us."""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from trimtab.sidecar.engine import EngineConnection, EnginePool, ResponseHead

if TYPE_CHECKING:
    from trimtab.sidecar.gateway import Gateway

FRESH = 1.0  # seconds an answer of /health is believed
PROGRESS = 5.0  # seconds since the engine last sent anything of an answer within which it is taken to be alive
TIMEOUT = 4.0


class EngineRequest:
    """A side request to the engine outside a client's request. Implements engine.Receiver."""

    def __init__(self, pool: EnginePool, loop: asyncio.AbstractEventLoop, payload: bytes) -> None:
        self.head_only = False
        self.connection: EngineConnection | None = None
        self.cancelled = False
        self._status = 0
        self._parts: list[bytes] = []
        self._result: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        pool.request(self, payload)

    def on_answer(self, head: ResponseHead | None, data: bytes, done: bool) -> None:
        """See engine.Receiver."""
        if head is not None:
            self._status = head.status
        self._parts.append(data)
        if done and not self._result.done():
            self._result.set_result((self._status, b"".join(self._parts)))

    def on_broken(self, kind: str, message: str) -> None:
        """See engine.Receiver."""
        if not self._result.done():
            self._result.set_exception(ConnectionError(f"{kind}: {message}"))

    async def result(self, seconds: float) -> tuple[int, bytes]:
        """(status, body). Raises ConnectionError or TimeoutError."""
        try:
            async with asyncio.timeout(seconds):
                return await self._result
        finally:
            self.cancelled = True
            if self.connection is not None:
                self.connection.abort()


class Health:
    """Readiness of the pod as the sidecar sees it."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._asked = -FRESH
        self._ok = False
        self._why = "the engine was not asked yet"
        self._probe: asyncio.Task[None] | None = None

    async def ready(self) -> tuple[bool, str]:
        """(whether requests will be served, why not)."""
        if self._gateway.draining:
            return False, "draining"
        now = monotonic()
        # TGI answers /health only between forward passes, so a long prefill delays it: tokens that flow say more.
        if self._gateway.last_answer and now - self._gateway.last_answer < PROGRESS:
            return True, "the engine is answering"
        if now - self._asked >= FRESH:
            if self._probe is None or self._probe.done():
                self._probe = self._gateway.loop.create_task(self._ask())
            await asyncio.shield(self._probe)
        return self._ok, self._why

    async def _ask(self) -> None:
        payload = b"GET /health HTTP/1.1\r\nhost: %s\r\n\r\n" % self._gateway.engine.host.encode()
        try:
            request = EngineRequest(self._gateway.engine, self._gateway.loop, payload)
            status, _ = await request.result(TIMEOUT)
            self._ok = status == 200
            self._why = f"the engine's /health answers {status}"
        except TimeoutError:
            self._ok, self._why = False, f"the engine's /health did not answer within {TIMEOUT:g} s"
        except OSError as error:
            self._ok, self._why = False, f"the engine cannot be reached: {error}"
        self._asked = monotonic()
