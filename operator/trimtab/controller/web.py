"""/healthz, /readyz and /metrics."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from trimtab.controller.metrics import CONTENT_TYPE, Metrics

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class WebServer:
    """Serves until `stop`. `alive` decides about restarts of the process, `ready` about traffic and upgrades; a process
    that waits for leadership is ready."""

    host: str
    port: int
    metrics: Metrics
    alive: Callable[[], str]
    ready: Callable[[], str]
    _runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen; the port, which the system chose where `port` is 0."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        port: int = self._runner.addresses[0][1]
        _log.info("listening on port %d", port)
        return port

    async def stop(self) -> None:
        """Close."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return _answer(self.alive())

    async def _readiness(self, _request: web.Request) -> web.Response:
        return _answer(self.ready())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})


def _answer(wrong: str) -> web.Response:
    return web.Response(text=wrong or "ok", status=503 if wrong else 200)
