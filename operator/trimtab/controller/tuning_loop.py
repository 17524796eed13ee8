"""Every tick one look at the metrics of all deployments; what follows is recorded and carried out by the next visits.

The loop writes nothing to the cluster itself: it changes records and queues keys, so that spec, decisions and drift
meet in one place, and a tick costs a constant number of queries whatever the number of deployments.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_spec
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.controller.book import Book, Record, settle
from trimtab.controller.cache import ObjectCache
from trimtab.controller.clock import Clock, rfc3339
from trimtab.controller.decided import clamp_replicas
from trimtab.controller.events import Events
from trimtab.controller.logs import current_key
from trimtab.controller.measured import observed_status, slo_finding, worth_telling
from trimtab.controller.metrics import Metrics
from trimtab.controller.objects import DEPLOYMENT, PAUSED_ANNOTATION, Key, Manifest
from trimtab.controller.pods import view_pods
from trimtab.controller.reasons import Finding, Reason
from trimtab.controller.report import Note
from trimtab.controller.seams import Planned, Planner
from trimtab.telemetry.prometheus import TelemetryUnavailableError
from trimtab.tuning.calibrate import calibrate, rebase
from trimtab.tuning.decide import decide
from trimtab.tuning.memory import Memory
from trimtab.tuning.objectives import build_objectives
from trimtab.tuning.types import Decision, Lever, Observation

_log = logging.getLogger(__name__)
Observations = Mapping[tuple[str, str], Observation]


class Observer(Protocol):
    """Reads the metrics of all deployments."""

    async def observe(self, now: float) -> Observations:
        """Observations by (namespace, name) at clock time `now`; raises TelemetryUnavailableError."""


UNSET = Finding(
    "False",
    Reason.PROMETHEUS_UNSET,
    "TRIMTAB_PROMETHEUS_URL is not set: nothing is measured and nothing is tuned.",
)


FAILED = Finding("False", Reason.TUNER_FAILED, "The tuner failed on this deployment; the operator's log says how.")


@dataclass(frozen=True, slots=True)
class Subject:
    """One deployment that a tick looks at."""

    key: Key
    resource: Manifest
    deployment: Manifest | None
    spec: LLMDeploymentSpec
    planned: Planned
    record: Record


class TuningLoop:
    """`run` ticks until cancelled; `tick` is one look."""

    def __init__(
        self,
        *,
        cache: ObjectCache,
        book: Book,
        planner: Planner,
        observer: Observer | None,
        events: Events,
        metrics: Metrics,
        clock: Clock,
        interval: float,
        wake: Callable[[Key], None],
    ) -> None:
        self._cache = cache
        self._book = book
        self._planner = planner
        self._observer = observer
        self._events = events
        self._metrics = metrics
        self._clock = clock
        self._interval = interval
        self._wake = wake

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Tick now and then every interval. A tick that fails is logged and the next one comes."""
        while True:
            start = self._clock.monotonic()
            result = "success"
            try:
                await self.tick()
            except TelemetryUnavailableError as unreachable:
                result = "unreachable"
                _log.warning("metrics: %s", unreachable)
            except Exception:  # noqa: BLE001 - the next tick may work
                result = "error"
                _log.exception("tuning tick failed")
            took = self._clock.monotonic() - start
            self._metrics.ticked(result, took)
            await sleep(max(0.0, self._interval - took))

    async def tick(self) -> None:
        """One look. Raises TelemetryUnavailableError after saying so in every record."""
        now = self._clock.now().timestamp()
        if self._observer is None:
            return
        try:
            observations = await self._observer.observe(now)
        except TelemetryUnavailableError as unreachable:
            self._blind(Finding("False", Reason.PROMETHEUS_UNREACHABLE, f"Prometheus does not answer: {unreachable}"))
            raise
        for subject in self._subjects():
            token = current_key.set(subject.key)
            try:
                await self._look(subject, observations.get((subject.key.namespace, subject.key.name)), now)
            except Exception:  # noqa: BLE001 - one that cannot be judged must not keep the others from being tuned
                _log.exception("not tuned")
                subject.record.looked = True
                subject.record.hold = FAILED
                self._wake(subject.key)
            finally:
                current_key.reset(token)

    def _subjects(self) -> list[Subject]:
        found = []
        measured = self._book.calibrations()
        for key in self._cache.all_keys():
            resource = self._cache.resource(key)
            if resource is None or "deletionTimestamp" in resource["metadata"]:
                continue
            try:
                spec = parse_spec(resource.get("spec"))
            except InvalidSpecError:
                continue
            deployment = next((child for ref, child in self._cache.children(key) if ref.kind == DEPLOYMENT), None)
            record = self._book.open(key, resource, deployment)
            choice = record.decided.choice
            planned = self._planner.plan(spec, self._cache.nodes(), choice, serving=True, calibrations=measured)
            if planned.problem:
                # What runs belongs to an older spec: it is left as it is.
                continue
            found.append(Subject(key, resource, deployment, spec, planned, record))
        return found

    def _blind(self, finding: Finding) -> None:
        """Without metrics: hold what is and say so."""
        for subject in self._subjects():
            record = subject.record
            before = _state(record)
            record.go_blind(finding)
            if _state(record) != before:
                self._wake(subject.key)

    async def _look(self, subject: Subject, found: Observation | None, now: float) -> None:
        record, spec = subject.record, subject.spec
        observation = self._with_pods(subject, found or Observation(time=now))
        objectives = build_objectives(spec, subject.planned.plan, tick_s=self._interval)
        memory = record.memory if isinstance(record.memory, Memory) else _first_memory(record)
        memory = rebase(memory, objectives.step)
        # It may take a while: neither visits nor the lease must wait for it.
        decisions, record.memory = await asyncio.to_thread(decide, observation, objectives, memory, now)
        before = _state(record)
        for decision in decisions:
            await self._carry_out(subject, decision)
        _write_effects(record)
        if subject.planned.plan is not None:
            key = subject.planned.plan.calibration_key
            record.calibration = calibrate(record.memory, key, record.calibration)
        measured = observed_status(observation, subject.planned, rfc3339(self._clock.now()))
        refresh = measured is not None and (worth_telling(record.observed, measured) or bool(decisions))
        if refresh:
            record.observed = measured
        hold = Finding("False", record.memory.hold.reason, record.memory.hold.sentence) if record.memory.hold else None
        metrics = metrics_finding(observation, hold)
        record.looked = True
        record.hold = settle(record.hold, hold, refresh=refresh) if hold is not None else None
        record.metrics = settle(record.metrics, metrics, refresh=refresh)
        record.slo = settle(record.slo, slo_finding(observation, objectives.slo, metrics), refresh=refresh)
        if _state(record) != before:
            self._wake(subject.key)

    def _with_pods(self, subject: Subject, observation: Observation) -> Observation:
        pods = view_pods(self._cache.pods(subject.key))
        stuck = sum(problem.reason == Reason.UNSCHEDULABLE for problem in pods.problems)
        wanted = ((subject.deployment or {}).get("spec") or {}).get("replicas")
        return replace(
            observation,
            replicas_wanted=int(wanted) if wanted is not None else None,
            replicas_ready=pods.ready,
            replicas_pending=pods.total - pods.ready,
            replicas_unschedulable=stuck,
        )

    async def _carry_out(self, subject: Subject, decision: Decision) -> None:
        record, spec = subject.record, subject.spec
        paused = PAUSED_ANNOTATION in (subject.resource["metadata"].get("annotations") or {})
        applied = decision.apply and not paused and not (decision.lever is Lever.REPLICAS and spec.replicas is not None)
        if applied and decision.lever is Lever.LIVE_LIMIT:
            live = replace(record.decided.live, max_in_flight=int(decision.to_value))
            record.decided = replace(record.decided, live=live)
        elif applied:
            record.decided = replace(record.decided, replicas=clamp_replicas(spec, int(decision.to_value)))
        record.add_decision(decision_status(decision, applied=applied, now=rfc3339(self._clock.now())))
        self._metrics.decided(str(decision.lever), decision.reason, applied=applied)
        _log.info("%s", decision.sentence)
        told = "" if applied else " (advice only)"
        note = Note("Normal", decision.reason, "Tune", f"{_capital(decision.sentence)}{told}")
        await self._events.tell(subject.resource, note)


def _state(record: Record) -> tuple[object, ...]:
    """What a visit would write."""
    return (
        record.looked,
        record.metrics,
        record.slo,
        record.hold,
        record.observed,
        record.decisions,
        record.decided,
        record.calibration,
    )


def metrics_finding(observation: Observation, hold: Finding | None) -> Finding:
    """The condition MetricsAvailable."""
    if hold is not None and hold.reason.startswith("Metrics"):
        return hold
    if observation.age_s is None:
        return Finding("False", Reason.METRICS_MISSING, "Prometheus has no metrics of this deployment's sidecars.")
    text = f"{observation.pods_reporting or 0} sidecars report."
    return Finding("True", Reason.METRICS_FRESH, text)


def decision_status(decision: Decision, *, applied: bool, now: str) -> dict[str, Any]:
    """An entry of `status.decisions`."""
    entry: dict[str, Any] = {
        "time": now,
        "lever": str(decision.lever),
        "fromValue": decision.from_value,
        "toValue": decision.to_value,
        "reason": decision.reason,
        "message": decision.sentence,
        "applied": applied,
        "inputs": {name: float(f"{value:.4g}") for name, value in decision.inputs.items()},
        "rejected": list(decision.rejected),
        "expected": decision.expected.sentence if decision.expected else "",
        "observed": "",
    }
    return {name: value for name, value in entry.items() if value is not None}


def _write_effects(record: Record) -> None:
    """Put what became of earlier decisions beside them."""
    for effect in record.memory.effects:
        entries = list(record.decisions)
        for index, entry in enumerate(entries):
            if entry["lever"] == effect.lever and not entry.get("observed") and entry.get("expected"):
                entries[index] = {**entry, "observed": effect.sentence}
                break
        record.decisions = tuple(entries)


def _first_memory(record: Record) -> Memory:
    """After a restart: continue from what was decided."""
    return Memory(limit=record.decided.live.max_in_flight, replicas=record.decided.replicas)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
