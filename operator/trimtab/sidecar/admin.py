"""The second listener: metrics, health, and commands of the operator. Never the way of a client's request."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from time import monotonic

from trimtab.sidecar.errors import REASONS, RefusedError
from trimtab.sidecar.gateway import Gateway
from trimtab.sidecar.head import HeadReader
from trimtab.sidecar.health import Health

log = logging.getLogger(__name__)

_TIMEOUT = 5.0
_MAX_HEAD = 16 * 1024
SETTLE = 10.0
"""Seconds until every node has heard that the pod is ending and sends it no new connections."""
_DRAIN_STEP = 0.1
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"

Answer = tuple[int, bytes, bytes]


class Admin:
    """GET /metrics, /healthz, /readyz, /status, /drain; POST /cache/clear."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._health = Health(gateway)
        self._drains = 0
        self._heads = HeadReader(secret=b"", key_map=lambda where: None)
        self._routes: dict[tuple[bytes, bytes], Callable[[], Awaitable[Answer]]] = {
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/healthz"): self._healthz,
            (b"GET", b"/readyz"): self._readyz,
            (b"GET", b"/status"): self._status,
            (b"GET", b"/drain"): self._drain,
            (b"POST", b"/cache/clear"): self._clear,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for asyncio.start_server."""
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass  # gone, slow or oversized: nothing worth an answer
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(_TIMEOUT * 12):
            raw = await reader.readuntil(b"\r\n\r\n")
        keep = False
        head_only = False
        try:
            head = self._heads.read(raw)
            head_only = head.method == b"HEAD"
            if head.length:
                await self._skip(reader, head.length)
            keep = head.keep_alive
            status, kind, body = await self._answer(b"GET" if head_only else head.method, head.target)
        except RefusedError as refused:
            status, kind, body = refused.failure.status, _JSON, json.dumps({"error": str(refused)}).encode()
        writer.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n%s\r\n%s"
            % (
                status,
                REASONS.get(status, "").encode(),
                kind,
                len(body),
                b"" if keep else b"connection: close\r\n",
                b"" if head_only else body,
            )
        )
        async with asyncio.timeout(_TIMEOUT):
            await writer.drain()
        return keep

    @staticmethod
    async def _skip(reader: asyncio.StreamReader, length: int) -> None:
        if not 0 < length <= _MAX_HEAD:
            raise RefusedError(413, "body_size", "no body is expected here")
        async with asyncio.timeout(_TIMEOUT):
            await reader.readexactly(length)

    async def _answer(self, method: bytes, target: bytes) -> Answer:
        path = target.partition(b"?")[0]
        handler = self._routes.get((method, path))
        if handler is not None:
            return await handler()
        known = any(route == path for _, route in self._routes)
        status = 405 if known else 404
        return status, _JSON, json.dumps({"error": REASONS[status]}).encode()

    async def _metrics(self) -> Answer:
        self._gateway.settle_all()
        return 200, _TEXT, self._gateway.metrics.text().encode()

    async def _healthz(self) -> Answer:
        return 200, _TEXT, b"ok\n"

    async def _readyz(self) -> Answer:
        ok, why = await self._health.ready()
        return 200 if ok else 503, _TEXT, why.encode("utf-8", "replace") + b"\n"

    async def _status(self) -> Answer:
        gateway = self._gateway
        bounds = gateway.admission.bounds
        status = {
            "inFlight": gateway.admission.in_flight,
            "queueDepth": gateway.admission.depth,
            "active": gateway.active,
            "draining": gateway.draining,
            "maxInFlight": bounds.max_in_flight,
            "maxQueue": bounds.max_queue,
            "queueTimeoutSeconds": bounds.queue_timeout,
            "cacheEntries": len(gateway.parts.memory) if gateway.parts.memory is not None else 0,
        }
        return 200, _JSON, json.dumps(status).encode()

    async def _drain(self) -> Answer:
        """Answer once no request is in flight, at most `drainTimeoutSeconds` later.

        The engine's preStop hook waits here (hooks can only GET), because an engine that is told to stop accepts
        nothing more: what still waits in the queue before it, or runs in an engine that does not finish, would be lost.
        While the hook waits, readiness is refused and every answer closes its connection.
        """
        gateway = self._gateway
        gateway.draining = True
        self._drains += 1
        begin = monotonic()
        try:
            while (waited := monotonic() - begin) < gateway.config.drain_timeout_seconds:
                if waited >= SETTLE and not gateway.active:
                    break
                await asyncio.sleep(_DRAIN_STEP)
        finally:
            self._drains -= 1
            # Nobody may take a pod out of service for good by asking this.
            gateway.draining = gateway.stopping or self._drains > 0
        return 200, _JSON, json.dumps({"active": gateway.active, "seconds": round(waited, 1)}).encode()

    async def _clear(self) -> Answer:
        parts = self._gateway.parts
        self._gateway.settle_all()
        dropped = parts.memory.clear() if parts.memory is not None else 0
        if parts.remote is not None:
            await parts.remote.clear()
        log.info("cache cleared on command: %d entries in memory", dropped)
        return 200, _JSON, json.dumps({"dropped": dropped}).encode()
