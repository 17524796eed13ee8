"""Kopf as transport: its watches fill the object cache, and nothing else.

Low-level event handlers only: no create, update or resume handlers, timers, daemons, return values or patches. So Kopf
writes no annotation and no finalizer, and losing an event costs nothing but time until the next listing.

It runs on an event loop and a thread of its own: at its end Kopf cancels every task that was started on its loop after
itself, and it takes over the signals of the main thread. Visits and the lease must not hang on that.
"""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from trimtab.controller.cache import ObjectCache
from trimtab.controller.connection import kopf_connection
from trimtab.controller.objects import (
    CHILD_KINDS,
    CHILD_SELECTOR,
    LLM_DEPLOYMENT,
    NODE,
    POD,
    WATCHED_KINDS,
    Kind,
    Manifest,
)

See = Callable[[Kind, Manifest, bool], None]
"""Takes an object of a kind, and whether it was deleted."""


class LongBackoffs:
    """Delays in seconds between the attempts of one request of Kopf: about ten minutes of API outage before it gives up
    and the process restarts. Iterated anew for every request."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1, 2, 3, 5, 8, 13, 21)
        yield from [30.0] * 18


def kopf_settings() -> kopf.OperatorSettings:
    """Settings for a transport that leaves no trace in the cluster."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.queueing.exit_timeout = 10
    settings.queueing.worker_limit = None
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = LongBackoffs()
    settings.execution.max_workers = 1
    for kind in (*CHILD_KINDS, POD):
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = CHILD_SELECTOR
    return settings


def build_registry(see: See, configuration: Configuration, *, nodes: bool) -> kopf.OperatorRegistry:
    """Handlers for all watched kinds, in a registry of their own."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await kopf_connection(configuration)

    for kind in watched_kinds(nodes=nodes):
        _watch(registry, see, kind)
    return registry


def watched_kinds(*, nodes: bool) -> tuple[Kind, ...]:
    """The kinds to list and watch."""
    return tuple(kind for kind in WATCHED_KINDS if nodes or kind != NODE)


def selector_for(kind: Kind) -> str:
    """Label selector of the listing and the watch of a kind."""
    return "" if kind in (LLM_DEPLOYMENT, NODE) else CHILD_SELECTOR


def _watch(registry: kopf.OperatorRegistry, see: See, kind: Kind) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=f"see-{kind.plural}", registry=registry)  # type: ignore[untyped-decorator]
    async def seen(event: Any, **_: Any) -> None:
        see(kind, event["object"], event["type"] == "DELETED")


class Watches:
    """Kopf in its thread; start it on the loop to which the cache belongs."""

    def __init__(
        self,
        cache: ObjectCache,
        configuration: Configuration,
        *,
        namespaces: Collection[str],
        nodes: bool,
        identity: str,
    ) -> None:
        self._cache = cache
        self._configuration = configuration
        self._namespaces = namespaces
        self._nodes = nodes
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    async def run(self) -> None:
        """Watch until `stop`; raises what ended Kopf otherwise."""
        self._thread.start()
        try:
            await asyncio.shield(self._ended)
        finally:
            self._stop.set()

    async def stop(self) -> None:
        """End the watches and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.wait({self._ended})

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(self._kopf())
        except BaseException as raised:  # noqa: BLE001 - handed over to the main thread, which ends the process
            failure = raised
        self._loop.call_soon_threadsafe(self._finish, failure)

    async def _kopf(self) -> None:
        try:
            await kopf.operator(
                registry=build_registry(self._see, self._configuration, nodes=self._nodes),
                settings=kopf_settings(),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                standalone=True,
                # Kopf would make one from the user's name, which a container's user need not have.
                identity=self._identity,
                stop_flag=self._stop,
            )
        finally:
            # Kopf waits for the flag in a thread, and the loop cannot close before that thread ends.
            self._stop.set()

    def _see(self, kind: Kind, manifest: Manifest, deleted: bool) -> None:
        self._loop.call_soon_threadsafe(self._cache.remove if deleted else self._cache.record, kind, manifest)

    def _finish(self, failure: BaseException | None) -> None:
        if self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
