"""The whole operator: its parts, how they start, and how they end."""

import asyncio
import logging
import random
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import yaml
from kubernetes.aio.client import Configuration

from trimtab.catalog.catalogue import Catalogue, CatalogueError, load_catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.controller.book import Book
from trimtab.controller.cache import ObjectCache
from trimtab.controller.children import failure_of
from trimtab.controller.clock import Clock, SystemClock
from trimtab.controller.events import Events
from trimtab.controller.kube import ApiFailure, NotFound
from trimtab.controller.kube_http import HttpKubeClient
from trimtab.controller.leader import LeaderElector
from trimtab.controller.logs import current_key
from trimtab.controller.metrics import Metrics
from trimtab.controller.modelfacts import ModelFinder
from trimtab.controller.objects import Key
from trimtab.controller.observer import PrometheusObserver
from trimtab.controller.planning import CachedPlanner
from trimtab.controller.queue import Visit, WorkQueue, resync
from trimtab.controller.reconcile import Reconciler
from trimtab.controller.rendering import ChildRenderer
from trimtab.controller.settings import Settings
from trimtab.controller.tuning_loop import UNSET, Observer, TuningLoop
from trimtab.controller.watches import Watches, selector_for, watched_kinds
from trimtab.controller.web import WebServer
from trimtab.hub.remote import HubAccess, fetch_model

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0
_STUCK_SECONDS = 600.0
_DRAIN_SECONDS = 8.0
_MIN_INTERVAL_SECONDS = 0.2
_SECOND_LOOK_SECONDS = 10.0


class OperatorFailedError(Exception):
    """The process must end and be started anew."""


class Operator:
    """One operator process. `run` works until `stop` is called or something fails for good."""

    def __init__(
        self,
        settings: Settings,
        configuration: Configuration,
        *,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.clock = clock or SystemClock()
        self._configuration = configuration
        self._stop = asyncio.Event()
        self._synced = False
        self._trouble = "the caches are not filled yet"
        self.kube = HttpKubeClient(
            configuration,
            timeout=settings.api_timeout_seconds,
            queries_per_second=settings.api_queries_per_second,
            burst=settings.api_burst,
            on_call=self.metrics.called,
        )
        self.cache = ObjectCache(self._changed)
        self.observer: Observer | None = observer
        if observer is None and settings.prometheus_url is not None:
            self.observer = PrometheusObserver(settings)
        self.book = Book(blind=UNSET if self.observer is None else None)
        self._finder = (
            ModelFinder(self._fetch, self.clock, lambda: self._changed(None)) if settings.hub_lookup else None
        )
        planner = CachedPlanner(read_catalogue(settings), nodes_known=settings.watch_nodes, finder=self._finder)
        events = Events(self.kube, self.clock, settings.pod_name, self.metrics.dropped_events.inc)
        self.reconciler = Reconciler(
            kube=self.kube,
            cache=self.cache,
            book=self.book,
            planner=planner,
            render=ChildRenderer(settings.sidecar_image),
            events=events,
            clock=self.clock,
        )
        self.queue: WorkQueue[Key] = WorkQueue(
            self._visit,
            jitter=random.random,
            concurrency=settings.concurrency,
            min_interval=_MIN_INTERVAL_SECONDS,
            on_visit=self._visited,
        )
        self.tuning = TuningLoop(
            cache=self.cache,
            book=self.book,
            planner=planner,
            observer=self.observer,
            events=events,
            metrics=self.metrics,
            clock=self.clock,
            interval=settings.tuning_interval_seconds,
            wake=self.queue.add,
        )
        self._leader = self._elector() if settings.leader_election else None
        self.metrics.watch_value("trimtab_queue_depth", "LLMDeployments that wait for a visit.", self._depth)
        self.metrics.watch_value(
            "trimtab_queue_oldest_seconds", "How long the first of them has waited.", self.queue.oldest_wait
        )

    def stop(self) -> None:
        """End `run` in good order."""
        self._stop.set()

    def ready(self) -> str:
        """Why the process is not ready; empty: it is."""
        return "" if self._synced else self._trouble

    def alive(self) -> str:
        """Why the process should be restarted; empty: it should not."""
        waited = self.queue.oldest_wait()
        leading = self._leader is None or self._leader.leading
        return f"the queue has not moved for {waited:.0f} s" if leading and waited > _STUCK_SECONDS else ""

    async def run(self) -> None:
        """Work until `stop`. Raises OperatorFailedError when the process should be started anew."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.kube.close)
            if self._finder is not None:
                stack.push_async_callback(self._finder.close)
            web = WebServer(self.settings.web_host, self.settings.web_port, self.metrics, self.alive, self.ready)
            stack.push_async_callback(web.stop)
            await web.start()
            first = asyncio.create_task(self._first_listing())
            if not await self._unless_stopped(first):
                return
            watches = Watches(
                self.cache,
                self._configuration,
                namespaces=self.settings.namespaces,
                nodes=self.settings.watch_nodes,
                identity=self.settings.pod_name,
            )
            watching = asyncio.create_task(watches.run(), name="watches")
            stack.push_async_callback(_end, watching)
            stack.push_async_callback(watches.stop)
            if self._leader is not None:
                stack.push_async_callback(self._leader.release)
                if not await self._unless_stopped(asyncio.create_task(self._leader.acquire()), watching):
                    return
            self.metrics.leading.set(1)
            await self._work(watching)

    async def _work(self, watching: asyncio.Task[None]) -> None:
        queue = asyncio.create_task(self.queue.run(), name="queue")
        loops = [
            asyncio.create_task(self._resync(), name="resync"),
            asyncio.create_task(self.tuning.run(), name="tuning"),
        ]
        if self._leader is not None:
            loops.append(asyncio.create_task(self._hold(), name="leader"))
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait({queue, *loops, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                _raise_failure(task)
            if watching in done and not self._stop.is_set():
                raise OperatorFailedError("the watches ended")
        finally:
            self.metrics.leading.set(0)
            for task in (*loops, stopping):
                await _end(task)
            # What is being written is finished, unless another process may already write; what waits is left to it.
            self.queue.close()
            if self._stop.is_set():
                await asyncio.wait({queue}, timeout=_DRAIN_SECONDS)
            await _end(queue)

    async def _unless_stopped(self, task: asyncio.Task[None], *others: asyncio.Task[None]) -> bool:
        """Wait for a task; False when the process shall end before it is done."""
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopping, *others}, return_when=asyncio.FIRST_COMPLETED)
            for other in (task, *others):
                _raise_failure(other)
            return task.done() and not any(other.done() for other in others)
        finally:
            await _end(stopping)
            await _end(task)

    async def _first_listing(self) -> None:
        while not self._synced:
            try:
                await self._list()
                self._synced = True
            except NotFound:
                self._trouble = "the CustomResourceDefinition llmdeployments.trimtab.dev is not installed"
            except ApiFailure as failure:
                self._trouble = str(failure)
            if not self._synced:
                _log.warning("not ready: %s", self._trouble)
                await asyncio.sleep(_RETRY_SECONDS)
        for key in self.cache.all_keys():
            self.queue.add(key)

    async def _list(self) -> None:
        # LLMDeployments first: children that are seen before their parent would be taken for strays.
        for kind in watched_kinds(nodes=self.settings.watch_nodes):
            places: Iterable[str | None] = self.settings.namespaces if kind.namespaced else ()
            for namespace in tuple(places) or (None,):
                listing = await self.kube.list_all(kind, namespace, selector_for(kind))
                self.cache.replace_all(kind, listing, namespace)

    async def _resync(self) -> None:
        # Between the first listing and the start of the watches something may have been deleted unseen.
        await asyncio.sleep(_SECOND_LOOK_SECONDS)
        await self._listed_keys()
        await resync(self.queue, self._listed_keys, every=self.settings.resync_seconds, jitter=random.random)

    async def _listed_keys(self) -> tuple[Key, ...]:
        try:
            await self._list()
        except ApiFailure as failure:
            _log.warning("listing: %s", failure)
        return self.cache.all_keys()

    async def _hold(self) -> None:
        if self._leader is not None:
            raise OperatorFailedError(await self._leader.hold())

    async def _visit(self, key: Key) -> float | None:
        current_key.set(key)
        again = await self.reconciler.visit(key)
        if self.cache.resource(key) is None:
            self.queue.forget(key)
        return again

    def _visited(self, visit: Visit[Key]) -> None:
        self.metrics.visited(visit)
        if visit.failure is None:
            return
        expected = failure_of(visit.failure) is not None
        trace = None if expected else visit.failure
        _log.warning(
            "visit of %s failed, again in %.1f s: %s", visit.key, visit.retry_in, visit.failure, exc_info=trace
        )

    def _changed(self, key: Key | None) -> None:
        for changed in self.cache.all_keys() if key is None else (key,):
            self.queue.add(changed)

    def _depth(self) -> float:
        return float(self.queue.depth)

    def _fetch(self, model_id: str, revision: str | None) -> ModelFacts:
        return fetch_model(model_id, revision, HubAccess(timeout_seconds=self.settings.hub_timeout_seconds))

    def _elector(self) -> LeaderElector:
        namespace = self.settings.leader_namespace
        if namespace is None:
            raise OperatorFailedError("TRIMTAB_LEADER_NAMESPACE must be set for leader election")
        return LeaderElector(
            self.kube,
            self.clock,
            namespace=namespace,
            name=self.settings.leader_lease,
            identity=f"{self.settings.pod_name}_{random.getrandbits(32):08x}",
        )


def read_catalogue(settings: Settings) -> Catalogue:
    """The bundled catalogue with the user's additions; raises OperatorFailedError when those are wrong."""
    catalogue = load_catalogue()
    if settings.catalogue_file is None:
        return catalogue
    try:
        return catalogue.merged(yaml.safe_load(settings.catalogue_file.read_text("utf-8")) or {})
    except (OSError, yaml.YAMLError, AttributeError, CatalogueError) as wrong:
        raise OperatorFailedError(f"TRIMTAB_CATALOGUE_FILE {settings.catalogue_file}: {wrong}") from wrong


async def _end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; its failure was or will be reported elsewhere."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is not None:
        _log.debug("task %s ended: %r", task.get_name(), task.exception())


def _raise_failure(task: asyncio.Task[Any]) -> None:
    if task.done() and not task.cancelled() and (failure := task.exception()) is not None:
        raise OperatorFailedError(f"{task.get_name()}: {failure}") from failure
