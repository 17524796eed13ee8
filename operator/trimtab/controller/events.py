"""Events (events.k8s.io/v1): repeated ones become one with a count, and one object cannot flood the cluster."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trimtab.controller.clock import Clock, rfc3339_micro
from trimtab.controller.difference import fingerprint
from trimtab.controller.kube import AlreadyExists, ApiFailure, KubeClient, NotFound, TokenBucket
from trimtab.controller.objects import EVENT, Manifest, Ref
from trimtab.controller.report import Note

_log = logging.getLogger(__name__)
CONTROLLER = "trimtab.dev/operator"
# Upper bounds of the fields in the events.k8s.io/v1 API.
_MAX_NOTE = 1024
_MAX_REASON = 128
SERIES_SECONDS = 600.0
"""The same news within this time counts as one series."""
BURST = 10.0
REFILL_PER_SECOND = 1 / 30
_MAX_REMEMBERED = 4096


@dataclass(slots=True)
class _Series:
    ref: Ref
    count: int
    last: float


@dataclass(slots=True)
class Events:
    """Writes events; never fails what it reports about."""

    kube: KubeClient
    clock: Clock
    instance: str
    """Name of this operator process."""
    on_drop: Callable[[], None] = lambda: None
    _series: dict[str, _Series] = field(default_factory=dict)
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    async def tell(self, resource: Manifest, note: Note) -> None:
        """Record a note about a resource."""
        uid, now = resource["metadata"]["uid"], self.clock.monotonic()
        key = fingerprint([uid, note.kind, note.reason, note.action, note.text])
        if not self._buckets.setdefault(uid, TokenBucket(REFILL_PER_SECOND, BURST)).try_take(now):
            self.on_drop()
            return
        self._prune(now)
        try:
            await self._write(resource, note, key, now)
        except ApiFailure as failure:
            _log.warning("event not written: %s", failure)

    def forget(self, uid: str) -> None:
        """The resource is gone."""
        self._buckets.pop(uid, None)

    async def _write(self, resource: Manifest, note: Note, key: str, now: float) -> None:
        series = self._series.get(key)
        if series is not None:
            series.count, series.last = series.count + 1, now
            try:
                await self.kube.merge_patch(series.ref, self._patch(series.count))
                return
            except NotFound:
                # The API server keeps events for an hour only.
                pass
        metadata = resource["metadata"]
        ref = Ref(EVENT, metadata["namespace"], f"{metadata['name'][:200]}.{key}")
        self._series[key] = _Series(ref, 1, now)
        try:
            await self.kube.create(self._event(resource, note, ref.name))
        except AlreadyExists:
            # An earlier process told the same.
            self._series[key].count = 2
            await self.kube.merge_patch(ref, self._patch(2))

    def _prune(self, now: float) -> None:
        for key in [key for key, series in self._series.items() if now - series.last > SERIES_SECONDS]:
            del self._series[key]
        while len(self._series) >= _MAX_REMEMBERED:
            del self._series[next(iter(self._series))]

    def _patch(self, count: int) -> Manifest:
        return {"series": {"count": count, "lastObservedTime": rfc3339_micro(self.clock.now())}}

    def _event(self, resource: Manifest, note: Note, name: str) -> Manifest:
        metadata: dict[str, Any] = resource["metadata"]
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"namespace": metadata["namespace"], "name": name},
            "eventTime": rfc3339_micro(self.clock.now()),
            "reportingController": CONTROLLER,
            "reportingInstance": self.instance[:128],
            "type": note.kind,
            "reason": note.reason[:_MAX_REASON],
            "action": note.action[:_MAX_REASON],
            "note": note.text if len(note.text) <= _MAX_NOTE else f"{note.text[: _MAX_NOTE - 1]}…",
            "regarding": {
                "apiVersion": resource["apiVersion"],
                "kind": resource["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
