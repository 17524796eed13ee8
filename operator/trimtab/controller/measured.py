"""Pure: what was measured, as status and as the condition SLOMet."""

from collections.abc import Mapping
from typing import Any

from trimtab.controller.reasons import Finding, Reason
from trimtab.controller.seams import Planned
from trimtab.plan.types import SloTargets
from trimtab.tuning.types import Observation, Percentiles

_NOTICEABLE = 0.05
_SMALL = 0.01


def observed_status(observation: Observation, planned: Planned, now: str) -> dict[str, Any] | None:
    """`status.observed`; None when nothing was measured. Times in milliseconds, three significant digits."""
    if observation.age_s is None:
        return None
    replicas = observation.replicas_ready
    cost = planned.cost_per_hour * replicas if planned.cost_per_hour is not None and replicas is not None else None
    rate = observation.tokens_out_per_s
    values: dict[str, Any] = {
        "time": now,
        "ttftMs": _milliseconds(observation.ttft),
        "tpotMs": _milliseconds(observation.tpot),
        "latencyMs": _milliseconds(observation.latency),
        "requestsPerSecond": _rounded(observation.arrivals_per_s),
        "tokensPerSecond": _rounded(rate),
        "cacheHitRatio": _rounded(observation.hit_ratio),
        "inFlight": _rounded(observation.in_flight),
        "queued": _rounded(observation.queued),
        "costPerHour": _rounded(cost),
        "costPerMillionTokens": _rounded(cost / rate / 3600 * 1e6 if cost is not None and rate else None),
    }
    return {name: value for name, value in values.items() if value is not None}


def worth_telling(known: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> bool:
    """Whether a value moved so much that status should be written: metrics jitter, and a write costs every watcher."""
    if known is None:
        return True
    before, after = _flat(known), _flat(measured)
    return before.keys() != after.keys() or any(_moved(before[name], after[name]) for name in after)


def slo_finding(observation: Observation, slo: SloTargets, metrics: Finding) -> Finding:
    """The condition SLOMet: every stated percentile against its objective."""
    if not slo:
        return Finding("Unknown", Reason.NO_SLO, "spec.slo states no objective.")
    if metrics.status != "True":
        return Finding("Unknown", metrics.reason, "The objective cannot be judged without fresh metrics.")
    judged: list[tuple[float, str]] = []
    for name, targets, measured in (
        ("TTFT", slo.ttft, observation.ttft),
        ("TPOT", slo.tpot, observation.tpot),
        ("latency", slo.latency, observation.latency),
    ):
        for percentile, target in sorted(targets.items()):
            value = measured.at(percentile)
            if value is not None:
                text = f"{name} p{percentile * 100:g} {value * 1000:.0f} ms of {target * 1000:.0f} ms"
                judged.append((value / target, text))
    if not judged:
        return Finding("Unknown", Reason.NO_TRAFFIC, "No request was served in the last window.")
    missed = [text for ratio, text in judged if ratio > 1]
    if missed:
        return Finding("False", Reason.SLO_MISSED, f"Missed: {', '.join(missed)}.")
    return Finding("True", Reason.SLO_MET, f"Nearest to its objective: {max(judged)[1]}.")


def _milliseconds(percentiles: Percentiles) -> dict[str, float] | None:
    named = {"p50": percentiles.p50, "p95": percentiles.p95, "p99": percentiles.p99}
    found = {name: _rounded(value * 1000) for name, value in named.items() if value is not None}
    return {name: value for name, value in found.items() if value is not None} or None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            found[f"{prefix}{name}"] = float(value)
    return found


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > max(_NOTICEABLE * max(abs(before), abs(after)), _SMALL)
