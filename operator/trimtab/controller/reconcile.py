"""One visit of an LLMDeployment: observe, plan, render, apply, report.

A visit looks at the whole state, never at what changed; it may be cut off anywhere and repeated at any time.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_spec
from trimtab.api.spec import LLMDeploymentSpec, TuningMode
from trimtab.controller.autoscalers import Autoscalers
from trimtab.controller.book import Book, Record
from trimtab.controller.cache import ObjectCache
from trimtab.controller.children import Children, NameTakenError, failure_of
from trimtab.controller.clock import Clock, rfc3339
from trimtab.controller.decided import Decided, clamp_live, clamp_replicas
from trimtab.controller.events import Events
from trimtab.controller.kube import ApiFailure, Conflict, KubeClient, NotFound
from trimtab.controller.objects import (
    DECIDED_ANNOTATION,
    DEPLOYMENT,
    LLM_DEPLOYMENT,
    PAUSED_ANNOTATION,
    Key,
    Manifest,
    Ref,
    kind_of,
)
from trimtab.controller.pods import view_pods
from trimtab.controller.reasons import Finding, Reason
from trimtab.controller.report import build_status, same_status, status_manifest, transitions
from trimtab.controller.seams import Planned, Planner, Renderer
from trimtab.controller.status import Facts, TuningFindings
from trimtab.resources.sidecar_config import LiveSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a visit starts from: the newest known state of everything that belongs to one resource."""

    key: Key
    resource: Manifest
    deployment: Manifest | None
    pods: tuple[Manifest, ...]
    nodes: tuple[Manifest, ...]
    autoscaler: str
    """Name of somebody else's autoscaler of our Deployment; empty: none."""

    @property
    def paused(self) -> bool:
        """The user asked the operator to keep its hands off."""
        value = (self.resource["metadata"].get("annotations") or {}).get(PAUSED_ANNOTATION)
        return value is not None and value.lower() not in ("", "false")

    @property
    def deployment_replicas(self) -> int:
        """`spec.replicas` of the child as it stands."""
        return int(((self.deployment or {}).get("spec") or {}).get("replicas") or 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The whole desired state; `manifests` is empty while the spec cannot become pods."""

    spec: LLMDeploymentSpec | None = None
    invalid: str = ""
    planned: Planned | None = None
    replicas: int = 0
    live: LiveSettings = field(default_factory=LiveSettings)
    manifests: tuple[Manifest, ...] = field(default_factory=tuple)


class Reconciler:
    """`visit` is what the work queue runs."""

    def __init__(
        self,
        *,
        kube: KubeClient,
        cache: ObjectCache,
        book: Book,
        planner: Planner,
        render: Renderer,
        events: Events,
        clock: Clock,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._book = book
        self._planner = planner
        self._render = render
        self._events = events
        self._clock = clock
        self._children = Children(kube, cache)
        self._autoscalers = Autoscalers(kube, clock)

    async def visit(self, key: Key) -> float | None:
        """Bring one resource to what is wanted and say what is true. Raises what the API refused, after reporting."""
        observed = await self.observe(key)
        if observed is None:
            return None
        record = self._book.open(key, observed.resource, observed.deployment)
        wanted = self.want(observed, record)
        error = None if observed.paused else await self._apply(observed, wanted)
        await self.report(observed, record, wanted, error)
        if error is not None:
            raise error
        return None

    async def observe(self, key: Key) -> Observed | None:
        """The state of a resource; None when it is gone or going."""
        resource = self._cache.resource(key)
        if resource is None:
            self._forget(key)
            return None
        if "deletionTimestamp" in resource["metadata"]:
            return None
        deployment = self._deployment(key)
        return Observed(
            key=key,
            resource=resource,
            deployment=deployment,
            pods=self._cache.pods(key),
            nodes=self._cache.nodes(),
            autoscaler=await self._autoscalers.foreign(deployment) if deployment is not None else "",
        )

    def want(self, observed: Observed, record: Record) -> Wanted:
        """Plan and render: the desired state from spec and recorded decisions, without any I/O."""
        try:
            spec = parse_spec(observed.resource.get("spec"))
        except InvalidSpecError as invalid:
            return Wanted(invalid=str(invalid), replicas=observed.deployment_replicas, live=record.decided.live)
        serving = view_pods(observed.pods).ready > 0
        choice, measured = record.decided.choice, self._book.calibrations()
        planned = self._planner.plan(spec, observed.nodes, choice, serving=serving, calibrations=measured)
        if planned.problem:
            return Wanted(spec, planned=planned, replicas=observed.deployment_replicas, live=record.decided.live)
        record.decided = Decided(record.decided.replicas, record.decided.live, planned.choice)
        live = clamp_live(spec, record.decided.live, planned.first_limit)
        replicas = clamp_replicas(spec, record.decided.replicas)
        asked = None if observed.autoscaler else replicas
        try:
            rendered = self._render(observed.resource, spec, planned, asked, live, observed.deployment)
        except InvalidSpecError as invalid:
            return Wanted(spec, str(invalid), replicas=observed.deployment_replicas, live=record.decided.live)
        if observed.autoscaler:
            replicas = observed.deployment_replicas
        manifests = tuple(_with_record(manifest, record.decided) for manifest in rendered)
        return Wanted(spec, planned=planned, replicas=replicas, live=live, manifests=manifests)

    async def report(self, observed: Observed, record: Record, wanted: Wanted, error: Exception | None) -> None:
        """Write status and events when there is news."""
        deployment = self._deployment(observed.key)
        resource = self._cache.resource(observed.key) or observed.resource
        facts = self._facts(observed, record, wanted, deployment, error)
        planned = wanted.planned if wanted.planned is not None and not wanted.planned.problem else None
        stored: Mapping[str, Any] = resource.get("status") or {}
        plan = planned.report if planned is not None else stored.get("plan")
        live_limit = wanted.live.max_in_flight if planned is not None else stored.get("liveLimit")
        status = build_status(resource, facts, record, plan, live_limit, rfc3339(self._clock.now()))
        if same_status(status, resource.get("status")):
            return
        try:
            stored_resource = await self._kube.apply_status(status_manifest(resource, status))
        except NotFound:
            return
        except Conflict:
            await self._look_again(observed.key)
            return
        self._cache.record(LLM_DEPLOYMENT, stored_resource, quiet=True)
        for note in transitions(facts.previous, status["conditions"]):
            await self._events.tell(resource, note)

    async def _look_again(self, key: Key) -> None:
        """The resource is no longer what the watch last showed: read it, which queues another visit."""
        ref = Ref(LLM_DEPLOYMENT, key.namespace, key.name)
        try:
            self._cache.record(LLM_DEPLOYMENT, await self._kube.get(ref))
        except NotFound:
            self._cache.drop(ref)

    async def _apply(self, observed: Observed, wanted: Wanted) -> Exception | None:
        if not wanted.manifests:
            return None
        try:
            await self._children.apply(observed.resource, wanted.manifests)
            await self._children.announce_live_settings(observed.key, wanted.manifests)
        except (ApiFailure, NameTakenError) as error:
            return error
        return None

    def _facts(
        self,
        observed: Observed,
        record: Record,
        wanted: Wanted,
        deployment: Manifest | None,
        error: Exception | None,
    ) -> Facts:
        metadata, status = observed.resource["metadata"], observed.resource.get("status") or {}
        planned = wanted.planned
        pods = view_pods(self._cache.pods(observed.key), planned.failures if planned else ())
        return Facts(
            generation=int(metadata.get("generation") or 0),
            pods=pods,
            deployment=deployment,
            desired_replicas=wanted.replicas,
            min_replicas=wanted.spec.scaling.min_replicas if wanted.spec else 1,
            invalid=wanted.invalid,
            infeasible=planned.problem if planned else "",
            planning=planned.pending if planned else False,
            plan_summary=planned.summary if planned else "",
            failure=failure_of(error) if error is not None else None,
            paused=observed.paused,
            tuning=TuningFindings(record.metrics, record.slo, tuning_finding(observed, record, wanted.spec)),
            previous={condition["type"]: condition for condition in status.get("conditions") or ()},
            previous_generation=status.get("observedGeneration"),
        )

    def _deployment(self, key: Key) -> Manifest | None:
        # Children of one resource share its name only by convention of the renderer: the kind is what counts.
        found = [child for ref, child in self._cache.children(key) if ref.kind == DEPLOYMENT]
        return found[0] if found else None

    def _forget(self, key: Key) -> None:
        record = self._book.records.get(key)
        if record is not None:
            self._events.forget(record.uid)
        self._book.forget(key)
        self._children.forget(key)


def tuning_finding(observed: Observed, record: Record, spec: LLMDeploymentSpec | None) -> Finding:
    """The condition TuningActive: who moves what."""
    if observed.paused:
        return Finding("False", Reason.PAUSED, "The operator is paused.")
    if observed.autoscaler:
        message = (
            f"HorizontalPodAutoscaler {observed.autoscaler} sets the replicas of the Deployment: delete it, or let"
        )
        return Finding("False", Reason.FOREIGN_AUTOSCALER, f"{message} it target the LLMDeployment instead.")
    if spec is not None and spec.tuning.mode is TuningMode.OFF:
        return Finding("False", Reason.TUNING_OFF, "spec.tuning.mode is Off.")
    if record.hold is not None:
        return record.hold
    if not record.looked:
        return Finding("Unknown", Reason.NOT_MEASURED_YET, "The tuner has not looked at this deployment yet.")
    if spec is not None and spec.tuning.mode is TuningMode.ADVISE:
        return Finding("True", Reason.ADVISING, "Decisions are written to status and not carried out.")
    if spec is not None and spec.replicas is not None:
        return Finding("True", Reason.REPLICAS_FIXED, "spec.replicas fixes the pods; the live limit is tuned.")
    return Finding("True", Reason.TUNING, "The live limit and the replicas follow the objective.")


def _with_record(manifest: Manifest, decided: Decided) -> Manifest:
    if kind_of(manifest) != DEPLOYMENT:
        return manifest
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), DECIDED_ANNOTATION: decided.to_annotation()}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}
