"""The second lever: how many replicas. Costs money and takes a cold start to act."""

import math
from dataclasses import dataclass

from trimtab.tuning.rehearsal import Policy, Rehearsal, level
from trimtab.tuning.steptime import StepModel
from trimtab.tuning.types import Objectives, Observation

DEFAULT_PERCENTILE, MAX_PERCENTILE = 0.95, 0.99
DEFAULT_TTFT_SLACK_S = 2.0
SLACK_SHARE = 0.5
UP_WINDOW_S = 120.0
DOWN_BAND = 0.25
"""Replicas that must be spare beyond a whole one before one is given up: keeps noise from moving anything."""
FALLBACK_UTILISATION = 0.7
_NORMAL = ((0.5, 0.0), (0.9, 1.2816), (0.95, 1.6449), (0.99, 2.3263))


@dataclass(frozen=True, slots=True)
class ReplicaChoice:
    """A number of replicas and what decided it."""

    replicas: int
    wanted: float
    """Before rounding and bounds."""
    bound_by: str
    """`load`, `backlog`, `ttft`, `min`, `max`, `budget`, `unschedulable`."""
    inputs: dict[str, float]


def percentile_of(objectives: Objectives) -> float:
    """The share of requests that the strictest objective covers."""
    stated = (*objectives.slo.ttft, *objectives.slo.tpot, *objectives.slo.latency)
    return min(max(stated, default=DEFAULT_PERCENTILE), MAX_PERCENTILE)


def slack_of(objectives: Objectives) -> float:
    """Seconds that a request may wait for a place before its first token is late."""
    return max(min(objectives.slo.ttft.values(), default=DEFAULT_TTFT_SLACK_S) * SLACK_SHARE, 0.25)


def safe_batch(limit: float, percentile: float) -> float:
    """Mean batch at which the momentary one stays below `limit` for a share `percentile` of the time.

    The number of requests in a server that admits all at once is Poisson (infinite-server queue), so
    mean + z x sqrt(mean) = limit: square-root staffing (Halfin and Whitt 1981).
    """
    z = next(score for share, score in _NORMAL if share >= min(percentile, MAX_PERCENTILE))
    root = (-z + math.sqrt(z * z + 4.0 * max(limit, 1.0))) / 2.0
    return max(root * root, 0.3 * max(limit, 1.0))


def capacity_of(model: StepModel, limit: float, percentile: float) -> float:
    """Requests/s that one replica serves with its limit seldom reached."""
    return model.requests_per_s(safe_batch(limit, percentile))


def need_of(
    observation: Observation, objectives: Objectives, model: StepModel | None, limit: float | None
) -> float | None:
    """Replicas' worth of work that arrives for the engines."""
    if observation.arrivals_per_s is None:
        return None
    to_engine = observation.arrivals_per_s * (1.0 - (observation.hit_ratio or 0.0))
    if model is not None and limit:
        return to_engine / max(capacity_of(model, limit, percentile_of(objectives)), 1e-9)
    if observation.in_flight is None or not limit:
        return None
    return (observation.in_flight + (observation.queued or 0.0)) / (limit * FALLBACK_UTILISATION)


def backlog_of(observation: Observation, objectives: Objectives, model: StepModel | None, limit: float | None) -> float:
    """Replica-seconds of work that waits in the sidecars; 0 where it is part of the need already."""
    if model is None or not limit or not observation.queued:
        return 0.0
    return observation.queued / max(capacity_of(model, limit, percentile_of(objectives)), 1e-9)


def choose_replicas(
    observation: Observation,
    objectives: Objectives,
    rehearsal: Rehearsal,
    policy: Policy,
    backlog: float,
    current: int,
) -> ReplicaChoice | None:
    """Replicas that should be ordered now; None when no load is known."""
    if not len(rehearsal.loads):
        return None
    # More is ordered for what is needed lately; what was needed in the whole hold window only keeps what is there.
    recent, held = level(rehearsal, policy, backlog, UP_WINDOW_S), level(rehearsal, policy, backlog)
    wanted = recent if recent > current else min(held + DOWN_BAND, float(current))
    inputs = {
        "need": float(rehearsal.smooth[-1]),
        "wanted": recent if recent > current else held,
        "gain": policy.gain,
        "floor": policy.floor_share * rehearsal.peak,
        "holdSeconds": policy.hold_s,
        "backlogReplicaSeconds": backlog,
        "coldStartSeconds": rehearsal.cold_start_s,
    }
    return bounded(wanted, observation, objectives, inputs, "backlog" if backlog > rehearsal.slack_s else "load")


def bounded(
    wanted: float, observation: Observation, objectives: Objectives, inputs: dict[str, float], bound_by: str
) -> ReplicaChoice:
    """Round up and keep within bounds, budget and what the nodes can hold."""
    low, high = objectives.replica_bounds()
    replicas = max(math.ceil(wanted - 1e-6), 0)
    if replicas > high:
        replicas, bound_by = high, "max" if high == objectives.max_replicas else "budget"
    if replicas < low:
        replicas, bound_by = low, "min"
    ready, pending = observation.replicas_ready, observation.replicas_pending
    if observation.replicas_unschedulable and ready is not None:
        possible = max(ready + (pending or 0) - observation.replicas_unschedulable, low)
        if replicas > possible:
            replicas, bound_by = possible, "unschedulable"
    return ReplicaChoice(replicas, wanted, bound_by, inputs)
