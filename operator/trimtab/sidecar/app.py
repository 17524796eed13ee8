"""The process: listeners, housekeeping, and an orderly end."""

import asyncio
import logging
import signal
from pathlib import Path
from time import monotonic

from trimtab.sidecar.admin import Admin
from trimtab.sidecar.client import ClientConnection
from trimtab.sidecar.config import Config
from trimtab.sidecar.gateway import Gateway
from trimtab.sidecar.live import LiveFile

log = logging.getLogger(__name__)

SWEEP_PERIOD = 0.1  # seconds
QUIET = 0.5  # seconds without a request before the listener closes: endpoints may still be sending some
BACKLOG = 1024


class App:
    """A running sidecar."""

    def __init__(self, config: Config, directory: Path, gateway: Gateway) -> None:
        self.config = config
        self.gateway = gateway
        self._live = LiveFile(directory, gateway.apply_live, lambda result: gateway.metrics.live_reloads.add(result))
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server] = []

    @property
    def ports(self) -> tuple[int, int]:
        """(clients, admin): the ports in use, for configurations that ask for any free one."""
        found = [server.sockets[0].getsockname()[1] for server in self._servers]
        return found[0], found[1]

    async def start(self) -> None:
        """Open both listeners. Raises OSError."""
        loop = asyncio.get_running_loop()
        listen = self.config.listen
        self._live.look()
        server = await loop.create_server(
            lambda: ClientConnection(self.gateway), listen.host, listen.port, backlog=BACKLOG
        )
        self._servers.append(server)
        admin = Admin(self.gateway)
        self._servers.append(await asyncio.start_server(admin.serve, listen.host, listen.metrics_port, limit=16384))
        self._tasks = [loop.create_task(self._live.follow()), loop.create_task(self._sweep())]
        log.info("serving %s:%d for %s", listen.host, self.ports[0], self.config.upstream)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_PERIOD)
            self.gateway.sweep()

    def stop(self) -> None:
        """Begin to end: what SIGTERM does."""
        self.gateway.stopping = self.gateway.draining = True
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.start()
        await self._stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """Serve what comes until nothing has been in flight for a moment or the time is up, then close.

        While draining, readiness is refused and every answer closes its connection; the listener stays open, because
        whoever still sends here has not heard yet and would otherwise get an error.
        """
        self.gateway.stopping = self.gateway.draining = True
        deadline = monotonic() + self.config.drain_timeout_seconds
        quiet_since = monotonic()
        while monotonic() < deadline and monotonic() - quiet_since < QUIET:
            if self.gateway.active or any(not client.idle for client in self.gateway.clients):
                quiet_since = monotonic()
            await asyncio.sleep(0.05)
        if self.gateway.active:
            log.warning("drain time is up: %d requests are broken off", self.gateway.active)
        await self.close()

    async def close(self) -> None:
        """Close everything now."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.gateway.close()
        log.info("stopped")
