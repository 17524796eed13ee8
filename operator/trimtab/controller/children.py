"""Brings the children to what is wanted: writes what differs, deletes what is no longer wanted, and nothing else."""

from collections.abc import Sequence

from trimtab.api import KIND
from trimtab.controller.cache import ObjectCache
from trimtab.controller.difference import difference, fingerprint, stamped
from trimtab.controller.kube import (
    ApiFailure,
    Conflict,
    Forbidden,
    KubeClient,
    NotFound,
    Refused,
)
from trimtab.controller.objects import (
    CHILD_KINDS,
    CLAIM,
    CONFIG_MAP,
    LIVE_REVISION_ANNOTATION,
    OWNER_LABEL,
    POD,
    Key,
    Manifest,
    Ref,
    owner_uids,
    ref_of,
    resource_version,
)
from trimtab.controller.reasons import Reason
from trimtab.controller.status import Failure
from trimtab.resources.identity import shortened

LIVE_FILE = "live.json"


class NameTakenError(Exception):
    """An object of somebody else has the name of a child; it is left alone."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(f"{ref} exists and does not belong to this LLMDeployment: delete it, or rename this one")


def failure_of(error: Exception) -> Failure | None:
    """What a failed write means for the conditions; None for errors that are none of these."""
    match error:
        case NameTakenError():
            return Failure(Reason.NAME_TAKEN, str(error))
        case Forbidden():
            return Failure(Reason.FORBIDDEN, f"The operator may not do this: {error}")
        case Refused():
            return Failure(Reason.REFUSED, f"The API server refuses a child: {error}")
        case Conflict():
            return Failure(Reason.FIELD_CONFLICT, str(error))
        case ApiFailure():
            return Failure(Reason.API_UNAVAILABLE, str(error))
    return None


class Children:
    """Applies manifests for one LLMDeployment after the other; remembers only what saves writes."""

    def __init__(self, kube: KubeClient, cache: ObjectCache) -> None:
        self._kube = kube
        self._cache = cache
        self._settled: dict[Ref, tuple[str, int]] = {}

    async def apply(self, resource: Manifest, manifests: Sequence[Manifest]) -> None:
        """Apply what differs, in the order of CHILD_KINDS; then delete children that are no longer among them.

        Raises the first failure; the next visit continues.
        """
        ordered = sorted(manifests, key=lambda manifest: CHILD_KINDS.index(ref_of(manifest).kind))
        for manifest in ordered:
            await self._apply_one(resource, stamped(manifest))
        wanted = {ref_of(manifest) for manifest in manifests}
        await self._prune(resource, wanted)

    async def announce_live_settings(self, key: Key, manifests: Sequence[Manifest]) -> None:
        """Mark the pods with the revision of live.json: the change makes each kubelet bring the file up to date at once
        rather than within its sync period."""
        maps = [manifest for manifest in manifests if ref_of(manifest).kind == CONFIG_MAP]
        text = next((data["data"][LIVE_FILE] for data in maps if LIVE_FILE in (data.get("data") or {})), None)
        if text is None:
            return
        revision = fingerprint(text)
        for pod in self._cache.pods(key):
            metadata = pod["metadata"]
            known = (metadata.get("annotations") or {}).get(LIVE_REVISION_ANNOTATION)
            if known == revision or "deletionTimestamp" in metadata:
                continue
            patch: Manifest = {"metadata": {"annotations": {LIVE_REVISION_ANNOTATION: revision}}}
            try:
                self._cache.record(POD, await self._kube.merge_patch(ref_of(pod, POD), patch), quiet=True)
            except NotFound:
                continue

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a deleted LLMDeployment's children."""
        for ref in [ref for ref in self._settled if ref.namespace == key.namespace]:
            if self._cache.get(ref) is None:
                del self._settled[ref]

    async def _apply_one(self, resource: Manifest, manifest: Manifest) -> None:
        ref = ref_of(manifest)
        live = self._cache.get(ref) or await self._look(ref)
        if live is not None:
            if not _ours(resource, live):
                raise NameTakenError(ref)
            if difference(manifest, live) is None or self._settled.get(ref) == _state(manifest, live):
                return
        stored = await self._kube.apply(manifest)
        self._cache.record(ref.kind, stored, quiet=True)
        # The server holds the two to be the same where we saw a difference: believe it, until either changes.
        if live is not None and resource_version(stored) == resource_version(live):
            self._settled[ref] = _state(manifest, live)

    async def _look(self, ref: Ref) -> Manifest | None:
        # The watches show only what carries our label: before creating something, make sure that the name is free.
        try:
            return await self._kube.get(ref)
        except NotFound:
            return None

    async def _prune(self, resource: Manifest, wanted: set[Ref]) -> None:
        key = Key(resource["metadata"]["namespace"], resource["metadata"]["name"])
        for ref, live in self._cache.children(key):
            # Downloaded weights are dear: a claim goes only with its LLMDeployment.
            if (
                ref in wanted
                or ref.kind == CLAIM
                or not _ours(resource, live)
                or "deletionTimestamp" in live["metadata"]
            ):
                continue
            await self._kube.delete(ref, uid=live["metadata"]["uid"])
            self._cache.drop(ref)


def _state(manifest: Manifest, live: Manifest) -> tuple[str, int]:
    return fingerprint(manifest), resource_version(live)


def _ours(resource: Manifest, live: Manifest) -> bool:
    """Owned by this resource, or left by a deleted namesake whose label it still carries."""
    owners = owner_uids(live)
    if resource["metadata"]["uid"] in owners:
        return True
    labels = live["metadata"].get("labels") or {}
    foreign = [owner for owner in live["metadata"].get("ownerReferences") or () if owner.get("kind") != KIND]
    return labels.get(OWNER_LABEL) == shortened(resource["metadata"]["name"]) and bool(owners) and not foreign
