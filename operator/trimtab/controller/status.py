"""Pure: what is true of an LLMDeployment, as conditions. Each condition is an ordered list of small checks; the first
check that finds something decides its status, reason and sentence.

Readable by kstatus (https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus): `observedGeneration`,
`Stalled` when only a person can help, and `Ready`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.controller.objects import Manifest
from trimtab.controller.pods import PodProblem, PodsView
from trimtab.controller.reasons import ConditionType, Finding, Reason


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the children could not be brought to what is wanted."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class TuningFindings:
    """What the tuning loop last found; the conditions SLOMet, MetricsAvailable and TuningActive."""

    metrics: Finding
    slo: Finding
    tuning: Finding


NOT_MEASURED = TuningFindings(
    metrics=Finding("Unknown", Reason.NOT_MEASURED_YET, "The operator has not asked Prometheus yet."),
    slo=Finding("Unknown", Reason.NOT_MEASURED_YET, "Nothing has been measured yet."),
    tuning=Finding("Unknown", Reason.NOT_MEASURED_YET, "The tuner has not looked at this deployment yet."),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that conditions rest on."""

    generation: int
    pods: PodsView
    deployment: Manifest | None
    """The child Deployment as last seen."""
    desired_replicas: int
    min_replicas: int
    invalid: str = ""
    """Sentences about what is wrong with the spec; empty: nothing."""
    infeasible: str = ""
    """Why no plan exists; empty: there is one."""
    planning: bool = False
    """The planner waits for facts about the model; `infeasible` says so."""
    plan_summary: str = ""
    failure: Failure | None = None
    paused: bool = False
    tuning: TuningFindings = NOT_MEASURED
    previous: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Conditions as stored, by type."""
    previous_generation: int | None = None

    @property
    def unusable(self) -> Finding | None:
        """What keeps the spec from becoming pods at all."""
        kept = f" {self.pods.ready} pods of the previous configuration keep serving." if self.pods.ready else ""
        if self.invalid:
            return Finding("False", Reason.INVALID_SPEC, f"{_sentence(self.invalid)}{kept}")
        if self.infeasible:
            reason = Reason.LOOKING_UP_MODEL if self.planning else Reason.NO_FEASIBLE_PLAN
            return Finding("False", reason, f"{_sentence(self.infeasible)}{kept}")
        return None

    def count(self, name: str) -> int:
        """A number of the child Deployment's status."""
        status = (self.deployment or {}).get("status") or {}
        return int(status.get(name) or 0)

    @property
    def deployment_lags(self) -> bool:
        """The Deployment controller has not seen the newest template or size yet."""
        generation = int(((self.deployment or {}).get("metadata") or {}).get("generation") or 0)
        return self.count("observedGeneration") < generation

    @property
    def rolling_out(self) -> bool:
        """Pods of an older template still exist."""
        return self.count("replicas") > self.count("updatedReplicas")

    @property
    def rollout_stuck(self) -> str:
        """The Deployment controller's sentence once its progress deadline has passed; else empty."""
        conditions = ((self.deployment or {}).get("status") or {}).get("conditions") or ()
        for condition in conditions:
            if condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
                return str(condition.get("message") or "the rollout makes no progress")
        return ""

    @property
    def creation_failure(self) -> str:
        """Why the ReplicaSet may not create pods (quota, admission); else empty."""
        conditions = ((self.deployment or {}).get("status") or {}).get("conditions") or ()
        for condition in conditions:
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return str(condition.get("message") or "pods cannot be created")
        return ""


Check = Callable[[Facts], Finding | None]


def _unusable(facts: Facts) -> Finding | None:
    return facts.unusable


def _apply_failed(facts: Facts) -> Finding | None:
    return Finding("False", facts.failure.reason, _sentence(facts.failure.message)) if facts.failure else None


def _no_deployment(facts: Facts) -> Finding | None:
    if facts.deployment is None:
        return Finding("False", Reason.CREATING, "The Deployment is being created.")
    return None


def _pods_not_created(facts: Facts) -> Finding | None:
    why = facts.creation_failure
    return Finding("False", Reason.PODS_NOT_CREATED, f"Pods are refused: {_sentence(why)}") if why else None


def _pods_crash(facts: Facts) -> Finding | None:
    return _problem_finding(facts, "False", [problem for problem in facts.pods.problems if problem.crashed])


def _rollout_stuck(facts: Facts) -> Finding | None:
    if facts.rollout_stuck and (facts.rolling_out or facts.pods.ready < facts.desired_replicas):
        worst = f" {facts.pods.problems[0].message}" if facts.pods.problems else ""
        return Finding("False", Reason.ROLLOUT_STUCK, _sentence(facts.rollout_stuck) + _sentence(worst))
    return None


def _scaled_to_zero(facts: Facts) -> Finding | None:
    if facts.desired_replicas == 0:
        return Finding("False", Reason.SCALED_TO_ZERO, "spec.replicas is 0: nothing serves until it is raised.")
    return None


def _deployment_lags(facts: Facts) -> Finding | None:
    if not facts.deployment_lags:
        return None
    kept = facts.previous.get(ConditionType.READY)
    if kept is not None and facts.previous_generation == facts.generation:
        return Finding(kept["status"], kept["reason"], kept["message"])
    return Finding("False", Reason.ROLLING_OUT, "The new configuration is about to be rolled out.")


def _rolling_out(facts: Facts) -> Finding | None:
    if not facts.rolling_out:
        return None
    done, total = facts.count("updatedReplicas"), facts.desired_replicas
    message = f"{done} of {total} pods have the new configuration; {facts.pods.ready} pods serve."
    return Finding("False", Reason.ROLLING_OUT, message)


def _none_serves(facts: Facts) -> Finding | None:
    if facts.pods.ready:
        return None
    found = _problem_finding(facts, "False", facts.pods.problems)
    if found is not None:
        return found
    if facts.pods.total == 0:
        return Finding("False", Reason.CREATING, "No pod exists yet.")
    message = f"{facts.pods.total} pods are starting: the engine loads the model before it answers."
    return Finding("False", Reason.STARTING, message)


def _too_few_serve(facts: Facts) -> Finding | None:
    least = min(facts.min_replicas, facts.desired_replicas)
    if facts.pods.ready >= least:
        return None
    found = _problem_finding(facts, "False", facts.pods.problems)
    message = f"{facts.pods.ready} of at least {least} pods serve."
    return found or Finding("False", Reason.PARTLY_SERVING, message)


def _serving(facts: Facts) -> Finding | None:
    return Finding("True", Reason.SERVING, f"{facts.pods.ready} of {facts.desired_replicas} pods serve.")


READY_CHECKS: tuple[Check, ...] = (
    _unusable,
    _apply_failed,
    _no_deployment,
    _pods_not_created,
    _pods_crash,
    _rollout_stuck,
    _scaled_to_zero,
    _deployment_lags,
    _rolling_out,
    _none_serves,
    _too_few_serve,
    _serving,
)


def _available(facts: Facts) -> Finding | None:
    if facts.pods.ready == 0:
        return None
    reason = Reason.SERVING if facts.pods.ready >= facts.desired_replicas else Reason.PARTLY_SERVING
    return Finding("True", reason, f"{facts.pods.ready} of {facts.desired_replicas} pods serve.")


def _nothing_serves(facts: Facts) -> Finding | None:
    return _scaled_to_zero(facts) or _none_serves(facts)


AVAILABLE_CHECKS: tuple[Check, ...] = (_available, _nothing_serves)


def _cannot_progress(facts: Facts) -> Finding | None:
    return facts.unusable or _apply_failed(facts) or _rollout_stuck(facts)


def _creating(facts: Facts) -> Finding | None:
    if facts.deployment is None:
        return Finding("True", Reason.CREATING, "The Deployment is being created.")
    return None


def _progress_of_rollout(facts: Facts) -> Finding | None:
    found = _rolling_out(facts)
    return Finding("True", found.reason, found.message) if found else None


def _scaling(facts: Facts) -> Finding | None:
    wanted, exist = facts.desired_replicas, facts.pods.total
    if exist > wanted:
        return Finding("True", Reason.SCALING_DOWN, f"From {exist} pods to {wanted}.")
    if facts.pods.ready < wanted:
        reason = Reason.SCALING_UP if facts.pods.ready else Reason.STARTING
        return Finding("True", reason, f"{facts.pods.ready} of {wanted} pods serve, the others are starting.")
    return None


def _up_to_date(_facts: Facts) -> Finding | None:
    return Finding("False", Reason.UP_TO_DATE, "Everything is as planned.")


PROGRESSING_CHECKS: tuple[Check, ...] = (_cannot_progress, _creating, _progress_of_rollout, _scaling, _up_to_date)


def _pods_have_problems(facts: Facts) -> Finding | None:
    return _problem_finding(facts, "True", facts.pods.problems)


def _degraded_otherwise(facts: Facts) -> Finding | None:
    for check in (_apply_failed, _pods_not_created, _rollout_stuck):
        found = check(facts)
        if found is not None:
            return Finding("True", found.reason, found.message)
    return None


def _not_degraded(_facts: Facts) -> Finding | None:
    return Finding("False", Reason.AS_EXPECTED, "No pod has a problem.")


DEGRADED_CHECKS: tuple[Check, ...] = (_pods_have_problems, _degraded_otherwise, _not_degraded)
_NEEDS_A_PERSON = {
    Reason.NAME_TAKEN,
    Reason.FORBIDDEN,
    Reason.REFUSED,
    Reason.FIELD_CONFLICT,
}
_POD_NEEDS_A_PERSON = {
    Reason.CRASH_LOOP,
    Reason.OUT_OF_MEMORY,
    Reason.ENGINE_FAILED,
    Reason.IMAGE_PULL,
    Reason.CONTAINER_CONFIG,
}


def _stalled(facts: Facts) -> Finding | None:
    # Unschedulable alone is no reason: a node may be on its way. The rollout's deadline tells when it is not.
    found = None if facts.planning else facts.unusable
    if found is None and facts.failure is not None and facts.failure.reason in _NEEDS_A_PERSON:
        found = _apply_failed(facts)
    if found is None:
        stuck = [problem for problem in facts.pods.problems if problem.reason in _POD_NEEDS_A_PERSON]
        found = _problem_finding(facts, "True", stuck) or _rollout_stuck(facts)
    return Finding("True", found.reason, found.message) if found else None


def _not_stalled(_facts: Facts) -> Finding | None:
    return Finding("False", Reason.NOT_STALLED, "Nothing waits for a person.")


STALLED_CHECKS: tuple[Check, ...] = (_stalled, _not_stalled)


def _being_planned(facts: Facts) -> Finding | None:
    found = facts.unusable
    return Finding("Unknown", found.reason, found.message) if found is not None and facts.planning else None


def _planned(facts: Facts) -> Finding | None:
    return facts.unusable or Finding("True", Reason.PLANNED, _sentence(facts.plan_summary))


def _paused(facts: Facts) -> Finding | None:
    if facts.paused:
        message = "Annotation trimtab.dev/paused is set: the operator changes nothing and tunes nothing."
        return Finding("True", Reason.PAUSED, message)
    return Finding("False", Reason.NOT_PAUSED, "The operator keeps the children as planned.")


CHECKS: Mapping[ConditionType, tuple[Check, ...]] = {
    ConditionType.READY: READY_CHECKS,
    ConditionType.AVAILABLE: AVAILABLE_CHECKS,
    ConditionType.PROGRESSING: PROGRESSING_CHECKS,
    ConditionType.DEGRADED: DEGRADED_CHECKS,
    ConditionType.STALLED: STALLED_CHECKS,
    ConditionType.PLANNED: (_being_planned, _planned),
    ConditionType.SLO_MET: (lambda facts: facts.tuning.slo,),
    ConditionType.METRICS_AVAILABLE: (lambda facts: facts.tuning.metrics,),
    ConditionType.TUNING_ACTIVE: (lambda facts: facts.tuning.tuning,),
    ConditionType.PAUSED: (_paused,),
}


def judge(facts: Facts) -> dict[ConditionType, Finding]:
    """The finding that decides each condition, in the order of ConditionType."""
    return {kind: _decide(checks, facts) for kind, checks in CHECKS.items()}


def conditions_of(facts: Facts, now: str) -> list[dict[str, Any]]:
    """The conditions as stored; `lastTransitionTime` becomes `now` (RFC 3339) only where the status flips."""
    result = []
    for kind, found in judge(facts).items():
        known = facts.previous.get(kind)
        same = known is not None and known["status"] == found.status
        result.append(
            {
                "type": kind.value,
                "status": found.status,
                "reason": str(found.reason),
                "message": found.message,
                "observedGeneration": facts.generation,
                "lastTransitionTime": known["lastTransitionTime"] if known is not None and same else now,
            }
        )
    return result


def _decide(checks: Sequence[Check], facts: Facts) -> Finding:
    return next(found for check in checks if (found := check(facts)) is not None)


def _problem_finding(facts: Facts, status: str, problems: Sequence[PodProblem]) -> Finding | None:
    if not problems:
        return None
    more = len({problem.pod for problem in problems}) - 1
    others = f" {more} more pods have problems." if more > 0 else ""
    serving = f" {facts.pods.ready} of {facts.desired_replicas} pods serve."
    return Finding(status, problems[0].reason, _sentence(problems[0].message) + others + serving)


def _sentence(text: str) -> str:
    text = text.rstrip()
    return text if not text or text.endswith((".", "…")) else f"{text}."
