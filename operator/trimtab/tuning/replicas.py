"""The second lever: how many replicas. Costs money and takes a cold start to act."""

import math
from dataclasses import dataclass

from trimtab.tuning.rehearsal import Policy, Rehearsal, level
from trimtab.tuning.steptime import StepModel
from trimtab.tuning.types import Objectives, Observation

DEFAULT_PERCENTILE, MAX_PERCENTILE = 0.95, 0.99
DEFAULT_TTFT_SLACK_S = 2.0
SLACK_SHARE = 0.5
BATCH_SLACK_SHARE, MAX_BATCH_SLACK_S = 0.25, 10.0
UP_WINDOW_S = 120.0
DOWN_BAND = 0.35
"""Replicas that must be spare beyond a whole one before one is given up: keeps noise from moving anything."""
FALLBACK_UTILISATION = 0.7


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


def slack_of(objectives: Objectives, model: StepModel | None, limit: float | None) -> float:
    """Seconds of work that may pile up before a first token is late.

    What arrives beyond the mean first fills the batches, which are seldom full: half of a request's time at the
    limit, of which half is counted. Then it may wait for a share of the objective.
    """
    waiting = min(objectives.slo.ttft.values(), default=DEFAULT_TTFT_SLACK_S) * SLACK_SHARE
    filling = BATCH_SLACK_SHARE * model.latency(limit) if model is not None and limit else 0.0
    return max(waiting + min(filling, MAX_BATCH_SLACK_S), 0.25)


def staffed(offered: float, limit: float) -> float:
    """Replicas for `offered` requests in service on average, each replica taking `limit` at once.

    The momentary number scatters by its square root (infinite-server queue; square-root staffing, Halfin and Whitt
    1981). One such deviation is added here; what lies beyond it over minutes, the rehearsed gain and hold cover.
    """
    return (offered + math.sqrt(max(offered, 0.0))) / max(limit, 1.0)


def need_of(observation: Observation, model: StepModel | None, limit: float | None) -> float | None:
    """Replicas' worth of work that arrives for the engines."""
    if observation.arrivals_per_s is None:
        return None
    latest = observation.arrivals_now_per_s
    arrivals = latest if latest is not None else observation.arrivals_per_s
    to_engine = arrivals * (1.0 - (observation.hit_ratio or 0.0))
    if model is not None and limit:
        return staffed(to_engine * model.latency(limit), limit)
    if observation.in_flight is None or not limit:
        return None
    return (observation.in_flight + (observation.queued or 0.0)) / (limit * FALLBACK_UTILISATION)


def backlog_of(observation: Observation, model: StepModel | None, limit: float | None) -> float:
    """Replica-seconds of work that waits in the sidecars; 0 where it is part of the need already."""
    if model is None or not limit or not observation.queued:
        return 0.0
    return observation.queued / max(model.requests_per_s(limit), 1e-9)


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
