"""An API server in memory: server-side apply with owned fields, resource versions, events, faults."""

import copy
import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.controller.kube import (
    FIELD_MANAGER,
    AlreadyExists,
    ApiFailure,
    Conflict,
    Listing,
    NotFound,
    failure_for,
)
from trimtab.controller.objects import LLM_DEPLOYMENT, Kind, Manifest, Ref, kind_of, ref_of

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "conditions": "type",
    "ownerReferences": "uid",
}
READS = {"get", "list"}


class CrashError(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Call:
    """One request as the server saw it."""

    verb: str
    ref: Ref
    body: Manifest | None = None


@dataclass(frozen=True)
class WatchEvent:
    """One line of a watch."""

    type: str
    kind: Kind
    object: Manifest


@dataclass
class FakeKube:
    """KubeClient in memory.

    `crash_after`: raise CrashError once that many writes were stored. `fault`: called before each call, may return a
    failure to raise. Listeners get every event; the world of the tests loses, delays and reorders them.
    """

    objects: dict[Ref, Manifest] = field(default_factory=dict)
    applied: dict[tuple[Ref, str, str], Manifest] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    listeners: list[Callable[[WatchEvent], None]] = field(default_factory=list)
    crash_after: int | None = None
    fault: Callable[[Call], ApiFailure | None] = lambda _call: None
    version: int = 100
    _uids: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def writes(self) -> list[Call]:
        """Requests that could change something."""
        return [call for call in self.calls if call.verb not in READS]

    def stored(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """One object as stored."""
        return self.objects[Ref(kind, namespace, name)]

    async def get(self, ref: Ref) -> Manifest:
        self._begin(Call("get", ref))
        return copy.deepcopy(self._existing("get", ref))

    async def list_all(self, kind: Kind, namespace: str | None = None, label_selector: str = "") -> Listing:
        self._begin(Call("list", Ref(kind, namespace, "")))
        wanted = dict(part.split("=", 1) for part in label_selector.split(",") if part)
        found = [
            copy.deepcopy(item)
            for ref, item in sorted(self.objects.items(), key=lambda pair: str(pair[0]))
            if ref.kind == kind
            and namespace in (None, ref.namespace)
            and wanted.items() <= (item["metadata"].get("labels") or {}).items()
        ]
        return Listing(tuple(found), self.version)

    async def apply(self, manifest: Manifest, *, force: bool = True, manager: str = FIELD_MANAGER) -> Manifest:
        ref = ref_of(manifest)
        self._begin(Call("apply", ref, copy.deepcopy(manifest)))
        return self._apply(ref, manifest, manager, force=force, subresource="")

    async def apply_status(self, manifest: Manifest, *, manager: str = FIELD_MANAGER) -> Manifest:
        ref = ref_of(manifest)
        self._begin(Call("apply_status", ref, copy.deepcopy(manifest)))
        live = self._existing("apply_status", ref)
        if manifest["metadata"].get("resourceVersion") not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict("apply_status", 409, "Conflict", "the object has been modified")
        return self._apply(ref, {"status": manifest["status"]}, manager, force=True, subresource="status")

    async def create(self, manifest: Manifest) -> Manifest:
        ref = ref_of(manifest)
        self._begin(Call("create", ref, copy.deepcopy(manifest)))
        if ref in self.objects:
            raise AlreadyExists("create", 409, "AlreadyExists", f"{ref} exists")
        return self.seed(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        ref = ref_of(manifest)
        self._begin(Call("replace", ref, copy.deepcopy(manifest)))
        live = self._existing("replace", ref)
        if manifest["metadata"].get("resourceVersion") not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict("replace", 409, "Conflict", "the object has been modified")
        return self._store(ref, {**manifest, "metadata": {**live["metadata"], **manifest["metadata"]}}, live)

    async def merge_patch(self, ref: Ref, patch: Manifest) -> Manifest:
        self._begin(Call("patch", ref, copy.deepcopy(patch)))
        live = self._existing("patch", ref)
        return self._store(ref, _merge_patch(live, patch), live)

    async def delete(self, ref: Ref, *, uid: str | None = None) -> None:
        self._begin(Call("delete", ref))
        live = self.objects.get(ref)
        if live is None:
            return
        if uid not in (None, live["metadata"]["uid"]):
            raise Conflict("delete", 409, "Conflict", "the UID in the precondition does not match")
        self.remove(ref)
        self._end()

    # What others do: no call of the operator, no fault.

    def seed(self, manifest: Manifest) -> Manifest:
        """Somebody creates an object."""
        return self._store(ref_of(manifest), copy.deepcopy(manifest), None)

    def edit(self, ref: Ref, change: Callable[[Manifest], None], *, bump: bool = True) -> Manifest:
        """Somebody edits an object; `bump`: the change counts as one of the spec."""
        live = self.objects[ref]
        edited = copy.deepcopy(live)
        change(edited)
        return self._store(ref, edited, live, bump=bump)

    def remove(self, ref: Ref) -> None:
        """Somebody deletes an object."""
        gone = copy.deepcopy(self.objects.pop(ref))
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        for owned in [key for key in self.applied if key[0] == ref]:
            del self.applied[owned]
        self._emit(WatchEvent("DELETED", ref.kind, gone))

    def _begin(self, call: Call) -> None:
        self.calls.append(call)
        failure = self.fault(call)
        if failure is not None:
            raise failure

    def _end(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after == 0:
                self.crash_after = None
                raise CrashError

    def _existing(self, verb: str, ref: Ref) -> Manifest:
        if ref not in self.objects:
            raise NotFound(verb, 404, "NotFound", f"{ref} not found")
        return self.objects[ref]

    def _apply(self, ref: Ref, manifest: Manifest, manager: str, *, force: bool, subresource: str) -> Manifest:
        live = self.objects.get(ref)
        owner = (ref, manager, subresource)
        wanted = copy.deepcopy(manifest)
        before = self.applied.get(owner, {})
        if not force:
            for other, theirs in self.applied.items():
                if other[0] == ref and other[1] != manager and _disagree(theirs, wanted):
                    raise Conflict("apply", 409, "Conflict", f"conflict with {other[1]}")
        base = copy.deepcopy(live) if live is not None else {}
        _remove_unset(base, before, wanted)
        merged = _merge(base, wanted)
        self.applied[owner] = wanted
        if live is not None and merged == live:
            return copy.deepcopy(live)
        stored = self._store(ref, merged, live, bump=subresource == "")
        self._end()
        return stored

    def _store(self, ref: Ref, manifest: Manifest, live: Manifest | None, *, bump: bool = True) -> Manifest:
        stored = copy.deepcopy(manifest)
        metadata = stored.setdefault("metadata", {})
        self.version += 1
        if live is None:
            metadata.setdefault("uid", f"uid-{next(self._uids)}-{uuid.UUID(int=self.version)}")
            metadata["generation"] = 1
        elif bump and stored.get("spec") != live.get("spec"):
            metadata["generation"] = live["metadata"].get("generation", 1) + 1
        metadata["resourceVersion"] = str(self.version)
        self.objects[ref] = stored
        self._emit(WatchEvent("ADDED" if live is None else "MODIFIED", ref.kind, copy.deepcopy(stored)))
        return copy.deepcopy(stored)

    def _emit(self, event: WatchEvent) -> None:
        for listener in self.listeners:
            listener(event)


def failing(code: int, reason: str = "", retry_after: float | None = None) -> ApiFailure:
    """The failure that an HTTP status stands for."""
    return failure_for("test", code, {"reason": reason, "message": f"injected {code}"}, retry_after)


def make_resource(name: str, namespace: str, spec: Mapping[str, Any]) -> Manifest:
    """An LLMDeployment as a user applies it."""
    return {
        "apiVersion": LLM_DEPLOYMENT.api_version,
        "kind": LLM_DEPLOYMENT.name,
        "metadata": {"namespace": namespace, "name": name},
        "spec": dict(spec),
    }


def _merge(base: Any, over: Any, name: str = "") -> Any:
    if isinstance(over, dict) and isinstance(base, dict):
        return {
            **base,
            **{key: _merge(base.get(key), value, key) if key in base else value for key, value in over.items()},
        }
    key = MERGE_KEYS.get(name)
    if key and isinstance(over, list) and isinstance(base, list):
        known = {entry.get(key): entry for entry in base}
        merged = [_merge(known.pop(entry.get(key), {}), entry) for entry in over]
        return [*merged, *known.values()]
    return over


def _remove_unset(base: Any, before: Any, wanted: Any, name: str = "") -> None:
    """Drop from `base` what this manager applied before and no longer does."""
    if isinstance(before, dict) and isinstance(base, dict):
        for key, value in before.items():
            if key not in base:
                continue
            if not isinstance(wanted, dict) or key not in wanted:
                del base[key]
            else:
                _remove_unset(base[key], value, wanted[key], key)
        return
    key = MERGE_KEYS.get(name)
    if key and isinstance(before, list) and isinstance(base, list):
        kept = {entry.get(key) for entry in wanted or ()}
        gone = {entry.get(key) for entry in before} - kept
        base[:] = [entry for entry in base if entry.get(key) not in gone]


def _disagree(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return any(key in theirs and _disagree(theirs[key], value) for key, value in ours.items())
    return bool(theirs != ours)


def _merge_patch(base: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_patch(result.get(key), value)
    return result


def kinds_written(calls: list[Call]) -> list[tuple[str, str]]:
    """Verb and kind of each call."""
    return [(call.verb, call.ref.kind.name) for call in calls]


__all__ = [
    "Call",
    "CrashError",
    "FakeKube",
    "WatchEvent",
    "failing",
    "kind_of",
    "kinds_written",
    "make_resource",
]
