"""Kopf as transport: its watches fill the object cache, and nothing else.

Low-level event handlers only: no create, update or resume handlers, timers, daemons, return values or patches. So Kopf
writes no annotation and no finalizer, and losing an event costs nothing but time until the next listing.
"""

from collections.abc import Iterator
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from trimtab.controller.cache import ObjectCache
from trimtab.controller.connection import kopf_connection
from trimtab.controller.objects import CHILD_KINDS, CHILD_SELECTOR, LLM_DEPLOYMENT, NODE, POD, WATCHED_KINDS, Kind


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


def build_registry(cache: ObjectCache, configuration: Configuration, *, nodes: bool) -> kopf.OperatorRegistry:
    """Handlers for all watched kinds, in a registry of their own."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator]
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await kopf_connection(configuration)

    for kind in watched_kinds(nodes=nodes):
        _watch(registry, cache, kind)
    return registry


def watched_kinds(*, nodes: bool) -> tuple[Kind, ...]:
    """The kinds to list and watch."""
    return tuple(kind for kind in WATCHED_KINDS if nodes or kind != NODE)


def selector_for(kind: Kind) -> str:
    """Label selector of the listing and the watch of a kind."""
    return "" if kind in (LLM_DEPLOYMENT, NODE) else CHILD_SELECTOR


def _watch(registry: kopf.OperatorRegistry, cache: ObjectCache, kind: Kind) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=f"see-{kind.plural}", registry=registry)  # type: ignore[untyped-decorator]
    async def see(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            cache.remove(kind, event["object"])
        else:
            cache.record(kind, event["object"])
