"""When not to decide: metrics that are missing, old or contradict each other. An ordered list of small checks."""

import math
from collections.abc import Callable
from dataclasses import fields

from trimtab.tuning.memory import Memory
from trimtab.tuning.types import Hold, Objectives, Observation

STALE_TICKS = 4.0
SERVED_OVER_ARRIVALS = 1.5
MIN_CONTRADICTION_RATE = 0.5

Check = Callable[[Observation, Objectives, Memory], Hold | None]


def check_hold(observation: Observation, objectives: Objectives, memory: Memory) -> Hold | None:
    """The first reason to leave everything as it is; None when there is none."""
    for check in CHECKS:
        found = check(observation, objectives, memory)
        if found is not None:
            return found
    return None


def switched_off(_: Observation, objectives: Objectives, __: Memory) -> Hold | None:
    """The spec says Off."""
    return Hold("TuningOff", "tuning.mode is Off") if objectives.mode == "Off" else None


def no_metrics(observation: Observation, _: Objectives, __: Memory) -> Hold | None:
    """Prometheus knows nothing of this deployment."""
    if observation.age_s is None or observation.arrivals_per_s is None:
        return Hold("MetricsMissing", "Prometheus has no metrics of this deployment's sidecars: holding what is")
    return None


def stale(observation: Observation, objectives: Objectives, _: Memory) -> Hold | None:
    """The newest sample is old."""
    bound = max(STALE_TICKS * objectives.tick_s, 60.0)
    if observation.age_s is not None and observation.age_s > bound:
        return Hold("MetricsStale", f"the last metrics are {observation.age_s:.0f} s old (more than {bound:.0f} s)")
    return None


def impossible(observation: Observation, _: Objectives, __: Memory) -> Hold | None:
    """Negative or infinite numbers."""
    for entry in fields(observation):
        value = getattr(observation, entry.name)
        if isinstance(value, float) and entry.name != "time" and (not math.isfinite(value) or value < 0):
            return Hold("MetricsContradictory", f"{entry.name} is {value}, which cannot be")
    return None


def pods_missing(observation: Observation, _: Objectives, __: Memory) -> Hold | None:
    """Pods serve whose sidecars are not seen: sums would be too low."""
    ready, reporting = observation.replicas_ready, observation.pods_reporting
    if ready and reporting is not None and reporting < ready:
        return Hold("MetricsIncomplete", f"only {reporting} of {ready} ready pods report metrics: sums are too low")
    return None


def traffic_without_pods(observation: Observation, _: Objectives, __: Memory) -> Hold | None:
    """Requests are served although no pod is ready."""
    if observation.replicas_ready == 0 and (observation.served_per_s or 0.0) > MIN_CONTRADICTION_RATE:
        return Hold("MetricsContradictory", "requests are served although no replica is ready: one of both is old")
    return None


def served_exceeds_arrivals(observation: Observation, _: Objectives, __: Memory) -> Hold | None:
    """More answers than requests over the same window, far beyond what a drained queue explains."""
    served, arrived = observation.served_per_s, observation.arrivals_per_s
    if served is None or arrived is None or (observation.queued or 0.0) > 0 or (observation.in_flight or 0.0) > 0:
        return None
    if served > SERVED_OVER_ARRIVALS * arrived + MIN_CONTRADICTION_RATE:
        return Hold("MetricsContradictory", f"{served:.1f} requests/s served but {arrived:.1f}/s arrived")
    return None


CHECKS: tuple[Check, ...] = (
    switched_off,
    no_metrics,
    stale,
    impossible,
    pods_missing,
    traffic_without_pods,
    served_exceeds_arrivals,
)
