"""What goes into a decision and what comes out. Times in seconds, token counts in tokens, rates per second."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from trimtab.plan.types import SloTargets, StepCoefficients

Mode = Literal["Auto", "Advise", "Off"]


class Lever(StrEnum):
    """What the tuner can move, cheapest and fastest first."""

    LIVE_LIMIT = "liveLimit"
    REPLICAS = "replicas"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Measured percentiles in seconds; None: not measured."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    def at(self, percentile: float) -> float | None:
        """The value at 0.5, 0.95 or 0.99 (others: the nearest of them that is not below)."""
        if percentile <= 0.5:
            return self.p50
        return self.p95 if percentile <= 0.95 else self.p99


@dataclass(frozen=True, slots=True)
class Observation:
    """One deployment, measured. `None` always means "not measured", never zero.

    Rates cover the last `window_s`; gauges are sums over all pods unless said otherwise.
    """

    time: float
    """Clock time that the values stand for."""
    age_s: float | None = None
    """Age of the oldest series that the values rest on; None: there is no series at all."""
    window_s: float = 60.0
    pods_reporting: int | None = None
    """Sidecars whose metrics arrived."""
    replicas_wanted: int | None = None
    """`spec.replicas` of the workload."""
    replicas_ready: int | None = None
    replicas_pending: int | None = None
    """Pods that exist and are not ready yet: scheduled, pulling, loading."""
    replicas_unschedulable: int = 0
    """Of the pending ones, those for which no node has room."""
    arrivals_per_s: float | None = None
    """Requests that reached the sidecars, cache hits and refused ones included."""
    arrivals_now_per_s: float | None = None
    """The same over about one tick; None: not measured, the mean over the window stands in."""
    served_per_s: float | None = None
    """Requests that the engines answered."""
    rejected_per_s: float | None = None
    """Requests refused by the sidecars' limit and queue."""
    errors_per_s: float | None = None
    hit_ratio: float | None = None
    """Share of the requests answered without the engine: hits and coalesced ones."""
    in_flight: float | None = None
    """Requests in the engines, mean over the window."""
    queued: float | None = None
    """Requests waiting in the sidecars, mean over the window."""
    limit: float | None = None
    """Live limit of one pod, as the sidecars report it (the largest)."""
    tokens_in_per_s: float | None = None
    """Prompt tokens sent to the engines."""
    tokens_out_per_s: float | None = None
    """Tokens that the engines generated."""
    ttft: Percentiles = Percentiles()
    tpot: Percentiles = Percentiles()
    latency: Percentiles = Percentiles()
    """Percentiles of requests that the engines served (no cache hits)."""
    ttft_mean: float | None = None
    tpot_mean: float | None = None
    latency_mean: float | None = None
    queue_wait_mean: float | None = None
    step_s: float | None = None
    """Mean time of the engine's decode steps, where the engine exports it."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a deployment should keep, and within which bounds; from spec and plan."""

    slo: SloTargets = field(default_factory=SloTargets)
    mode: Mode = "Auto"
    min_replicas: int = 1
    max_replicas: int = 1
    fixed_replicas: int | None = None
    """Set by the spec (or by `kubectl scale`): the tuner leaves replicas alone."""
    price_per_replica_hour: float | None = None
    max_hourly_cost: float | None = None
    min_in_flight: int = 1
    max_in_flight: int | None = None
    engine_concurrency: int | None = None
    """Requests that the engine accepts at most; the limit never exceeds it."""
    kv_tokens: int | None = None
    """Tokens that the KV cache of one replica holds."""
    step: StepCoefficients | None = None
    """The plan's step times; None: unknown, the fallback law acts."""
    planned_limit: int | None = None
    """Largest batch within the SLO as planned: where the limit starts."""
    input_tokens: float = 1024.0
    """Expected prompt length until it is measured."""
    output_tokens: float = 256.0
    prefill_budget: int = 4096
    cold_start_s: float = 120.0
    """From a decision to a serving pod, until it is measured."""
    tick_s: float = 15.0

    def replica_bounds(self) -> tuple[int, int]:
        """(fewest, most) replicas; the budget lowers the upper bound but never below the lower one."""
        most = self.max_replicas
        if self.max_hourly_cost is not None and self.price_per_replica_hour:
            most = min(most, int(self.max_hourly_cost / self.price_per_replica_hour + 1e-9))
        return self.min_replicas, max(most, self.min_replicas)


@dataclass(frozen=True, slots=True)
class Expectation:
    """The effect that a decision should have, checked at `check_at`."""

    metric: str
    """Name of the quantity, for instance "ttft p95"."""
    value: float
    check_at: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One lever moved."""

    id: str
    """Lever and time; stable, for finding the decision again when its effect is known."""
    time: float
    lever: Lever
    from_value: float | None
    to_value: float
    reason: str
    """One word for programs."""
    sentence: str
    """Why, for people."""
    apply: bool
    """False in Advise mode."""
    inputs: Mapping[str, float] = field(default_factory=dict)
    rejected: tuple[str, ...] = ()
    """Levers not taken, each with the reason."""
    expected: Expectation | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What came of a decision."""

    decision_id: str
    lever: Lever
    expected: float
    observed: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing is decided."""

    reason: str
    """One word for conditions and events."""
    sentence: str
