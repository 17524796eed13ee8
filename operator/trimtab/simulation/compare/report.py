"""Policies compared on one trace: the stable report.json and the table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from trimtab.plan.types import SloTargets
from trimtab.replay.trace import Trace
from trimtab.simulation.compare import baselines, forecasting
from trimtab.simulation.compare.fluid import Floats, Load, Policy, Run, Site, run
from trimtab.simulation.compare.oracle import Bounds, bounds
from trimtab.simulation.compare.ours import Trimtab
from trimtab.tuning.types import Objectives

WARM_UP_S = 600
TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)
FLOOR_SHARES = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A trace on a site under an objective."""

    trace: Trace
    load: Load
    site: Site
    slo: SloTargets
    percentile: float
    start_replicas: int
    optimum: Bounds
    player: "Player"

    def attained(self, played: Run) -> float:
        """Share of the scored requests within the objective's strictest bound of each metric."""
        return attainment(played, self.slo)


def attainment(played: Run, slo: SloTargets) -> float:
    """Share of scored requests that keep every metric's bound."""
    kept = np.ones(len(played.ttft_s), dtype=bool)
    for values, targets in ((played.ttft_s, slo.ttft), (played.tpot_s, slo.tpot), (played.latency_s, slo.latency)):
        if targets:
            kept &= values <= max(targets.values())
    scored = kept[played.scored]
    return float(scored.mean()) if len(scored) else 1.0


Player = Callable[[Policy, int, int], Run]
"""(policy, replicas at the start, second from which requests are scored) → run"""


def prepare(
    trace: Trace, site: Site, slo: SloTargets, percentile: float, make_player: Callable[[Load], Player] | None = None
) -> Scenario:
    """Everything that all policies share, the clairvoyant optimum included; the fluid fleet unless told otherwise."""
    load = Load(trace, site)
    player: Player = make_player(load) if make_player else partial(run, load, site)
    warm = min(WARM_UP_S, load.seconds // 4)
    window = load.need[:warm]
    peak = float(np.convolve(window, np.ones(15) / 15, mode="valid").max(initial=1.0)) if len(window) >= 15 else 1.0
    start = max(int(np.ceil(peak)), 1)
    found = bounds(
        load,
        site,
        percentile,
        warm,
        lambda policy, replicas: player(policy, replicas, warm),
        lambda played: attainment(played, slo),
    )
    return Scenario(trace, load, site, slo, percentile, start, found, player)


def play(scenario: Scenario, policy: Policy) -> Run:
    """One policy, from the common warm start."""
    warm = min(WARM_UP_S, scenario.load.seconds // 4)
    return scenario.player(policy, scenario.start_replicas, warm)


Maker = Callable[[], Policy]


def default_policies(objectives: Objectives) -> dict[str, Maker]:
    """Every policy in its documented defaults."""
    return {
        "trimtab": lambda: Trimtab(objectives),
        "hpa": lambda: baselines.Hpa(),
        "hpa-queue": lambda: baselines.Hpa(target=1.0, on="queue", name="hpa-queue"),
        "keda": lambda: baselines.Hpa(target=0.8, name="keda"),
        "knative-kpa": lambda: baselines.Kpa(),
        "kubeai": lambda: baselines.KubeAi(),
        "aibrix-apa": lambda: baselines.Apa(),
        "wva-saturation-v1": lambda: baselines.WvaSaturation(),
        "wva-token-v2": lambda: baselines.WvaToken(),
        "llm-d-slo": lambda: baselines.LlmdSlo(),
        "dynamo-constant": lambda: forecasting.Dynamo("constant"),
        "dynamo-kalman": lambda: forecasting.Dynamo("kalman"),
        "dynamo-arima": lambda: forecasting.Dynamo("arima"),
        "sageserve-lt-ua": lambda: forecasting.SageServe(),
    }


def tuned_grid(scenario: Scenario) -> dict[str, Sequence[Maker]]:
    """Settings that are searched for each tuned baseline: what somebody with hindsight could have chosen."""
    peak = float(np.convolve(scenario.load.need, np.ones(60) / 60, mode="valid").max(initial=1.0))
    floors = sorted({max(round(share * peak), 1) for share in FLOOR_SHARES})
    return {
        "static": [partial(baselines.Static, n) for n in _static_counts(peak)],
        "hpa+floor": [partial(baselines.Hpa, t, f, name="hpa+floor") for t in TARGETS for f in floors],
        "knative-kpa": [partial(baselines.Kpa, t) for t in TARGETS],
        "kubeai": [partial(baselines.KubeAi, t) for t in TARGETS],
        "aibrix-apa": [partial(baselines.Apa, t) for t in TARGETS],
        "wva-saturation-v1": [partial(baselines.WvaSaturation, t) for t in TARGETS],
        "wva-token-v2": [partial(baselines.WvaToken, t, 0.82 * t) for t in TARGETS],
        "llm-d-slo": [partial(baselines.LlmdSlo, 1.0 / t) for t in TARGETS],
        "dynamo-kalman": [partial(forecasting.Dynamo, "kalman", 1.0 / t) for t in TARGETS],
    }


def _static_counts(peak: float) -> list[int]:
    return sorted({max(round(peak * share), 1) for share in np.linspace(0.2, 1.4, 25)})


def best_tuned(scenario: Scenario, makers: Sequence[Maker]) -> Run:
    """The cheapest setting that keeps the objective on this very trace, else the one that keeps it most."""
    runs = [play(scenario, make()) for make in makers]
    shares = [scenario.attained(played) for played in runs]
    good = [played for played, share in zip(runs, shares, strict=True) if share >= scenario.percentile]
    if good:
        return min(good, key=lambda played: played.replica_hours)
    return runs[int(np.argmax(shares))]


def entry(scenario: Scenario, name: str, played: Run, gpus: int) -> dict[str, Any]:
    """One element of `policies` in report.json."""
    document: dict[str, Any] = {
        "name": name,
        "sloAttainment": round(scenario.attained(played), 5),
        "gpuHours": round(played.replica_hours * gpus, 3),
        "costRatioToOracle": round(played.replica_hours / scenario.optimum.high_hours, 4),
    }
    scored = played.scored
    for percentile in (50, 95, 99):
        document[f"p{percentile}"] = {
            key: _percentile_ms(values[scored], percentile)
            for key, values in (("ttftMs", played.ttft_s), ("tpotMs", played.tpot_s), ("latencyMs", played.latency_s))
        }
    lost = int((~np.isfinite(played.ttft_s[scored])).sum())
    document.update(scaleEvents=played.scale_events, rejected=0, errors=lost)
    return document


def _percentile_ms(values: Floats, percentile: int) -> float | None:
    """Of answered requests; None when there are none."""
    known = values[np.isfinite(values)]
    return round(float(np.percentile(known, percentile)) * 1000.0, 2) if len(known) else None


def report(scenario: Scenario, entries: Sequence[dict[str, Any]], gpus: int, model: str) -> dict[str, Any]:
    """The whole report.json."""
    return {
        "trace": scenario.trace.name,
        "origin": scenario.trace.source.origin,
        "requests": len(scenario.trace),
        "slo": {
            metric: {f"p{share * 100:g}": seconds * 1000.0 for share, seconds in targets.items()}
            for metric, targets in (
                ("ttftMs", scenario.slo.ttft),
                ("tpotMs", scenario.slo.tpot),
                ("latencyMs", scenario.slo.latency),
            )
            if targets
        },
        "coldStartSeconds": scenario.site.cold_start_s,
        "model": model,
        "oracle": {
            "gpuHoursLow": round(scenario.optimum.low_hours * gpus, 3),
            "gpuHoursHigh": round(scenario.optimum.high_hours * gpus, 3),
        },
        "policies": list(entries),
    }
