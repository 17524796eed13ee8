"""Policies in the request-level fleet: every request, batch and KV block is followed.

Dearer than the fluid fleet (some thousand times real time) and the one to trust: it knows imbalance between pods, mixed
lengths, KV limits and the engine's own queue. The same policies run in both.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.catalog.steptime import step_time_model
from trimtab.plan.types import ServingPlan
from trimtab.simulation.balancing import BalancerName
from trimtab.simulation.compare.fluid import METRICS_WINDOW_S, TICK_S, Load, Policy, Run, Site, View
from trimtab.simulation.fleet import Fleet, FleetSettings
from trimtab.simulation.policy import Action, Snapshot, Window
from trimtab.simulation.records import Result
from trimtab.simulation.replica import Admission
from trimtab.simulation.settings import Settings
from trimtab.simulation.workload import from_trace

DEFAULT_PREFILL_BUDGET = 4096
DEFAULT_CONCURRENCY = 128


def settings_of(plan: ServingPlan) -> Settings:
    """The engine as the plan launches it."""
    batching = plan.settings.batching
    return Settings(
        max_input_tokens=plan.max_input_tokens,
        max_total_tokens=plan.max_total_tokens,
        max_batch_prefill_tokens=batching.max_batch_prefill_tokens or DEFAULT_PREFILL_BUDGET,
        capacity_tokens=plan.kv_tokens,
        max_concurrent_requests=batching.max_concurrent_requests or DEFAULT_CONCURRENCY,
    )


class Adapter:
    """Shows a policy what Prometheus would show: means over a minute, of the snapshots of the last four ticks."""

    def __init__(self, policy: Policy, site: Site) -> None:
        self.policy, self.site = policy, site
        self.interval_s = float(TICK_S)
        self._windows: deque[Window] = deque(maxlen=METRICS_WINDOW_S // TICK_S)

    def decide(self, snapshot: Snapshot) -> Action:
        """See `trimtab.simulation.policy.Policy`."""
        if snapshot.window.seconds <= 0:
            return Action(limit=self.site.limit)
        self._windows.append(snapshot.window)
        view = self._view(snapshot)
        wanted = min(max(self.policy.replicas(view), 1), self.site.max_replicas)
        limit: int | None = getattr(self.policy, "limit", None)
        return Action(replicas=wanted, limit=limit)

    def _view(self, snapshot: Snapshot) -> View:
        windows = self._windows
        seconds = sum(window.seconds for window in windows)
        served = sum(window.served for window in windows)
        ttft = [value for window in windows for value in window.ttft_s]
        tpot = [value for window in windows for value in window.tpot_s]
        model = self.site.model
        return View(
            time=snapshot.time,
            ready=snapshot.ready,
            pending=snapshot.booting,
            arrivals_per_s=sum(window.arrivals for window in windows) / seconds,
            arrivals_now_per_s=windows[-1].arrivals / windows[-1].seconds,
            running=sum(window.in_flight * window.seconds for window in windows) / seconds,
            waiting=sum(window.queued * window.seconds for window in windows) / seconds,
            ttft_p=_percentiles(ttft),
            tpot_p=_percentiles(tpot),
            ttft_mean=float(np.mean(ttft)) if ttft else model.prefill_s,
            tpot_mean=float(np.mean(tpot)) if tpot else model.const_s,
            input_tokens=sum(window.tokens_in for window in windows) / served if served else 0.0,
            output_tokens=sum(window.tokens_out for window in windows) / served if served else 0.0,
            limit=snapshot.limit or self.site.limit,
            capacity=self.site.capacity(),
            full_tpot=model.tpot(self.site.limit),
        )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if not values:
        return (0.0, 0.0, 0.0)
    found = np.percentile(np.asarray(values), (50, 95, 99))
    return (float(found[0]), float(found[1]), float(found[2]))


@dataclass(frozen=True, slots=True)
class ExactFleet:
    """Plays policies on a load, request by request."""

    plan: ServingPlan
    load: Load
    site: Site
    balancer: BalancerName = "random"
    seed: int = 0

    def run(self, policy: Policy, start_replicas: int, score_from_s: int) -> Run:
        """As `fluid.run`; requests without a whole answer have infinite times."""
        plan = self.plan
        times = step_time_model(plan.model, plan.pool.gpu, plan.option.quantization, plan.option.gpus_per_replica)
        settings = FleetSettings(
            engine=settings_of(plan),
            times=times,
            replicas=start_replicas,
            max_replicas=self.site.max_replicas,
            boot_s=float(self.site.cold_start_s),
            balancer=self.balancer,
            admission=Admission(max_in_flight=self.site.limit),
            seed=self.seed,
        )
        fleet = Fleet(settings, from_trace(self.load.trace), Adapter(policy, self.site))
        return _as_run(fleet.run(), self.load, score_from_s)


def _as_run(result: Result, load: Load, score_from_s: int) -> Run:
    records = result.records
    answered = records.answered
    seconds = load.seconds
    ready, paid = np.zeros(seconds + 1), np.zeros(seconds + 1)
    for span in result.spans:
        _add(ready, span.ready_s, span.gone_s)
        _add(paid, span.created_s, span.gone_s)
    tpot = np.nan_to_num(records.tpot_s, nan=0.0)
    events = sum(change.what == "replicas" for change in result.changes)
    return Run(
        ttft_s=np.where(answered, records.ttft_s, np.inf),
        tpot_s=np.where(answered, tpot, np.inf),
        latency_s=np.where(answered, records.latency_s, np.inf),
        scored=np.asarray(records.arrival_s >= score_from_s),
        ready=np.cumsum(ready)[:seconds],
        paid=np.cumsum(paid)[:seconds],
        load=load.need,
        scale_events=events,
        score_from_s=score_from_s,
    )


def _add(changes: NDArray[np.float64], begin: float, end: float) -> None:
    last = len(changes) - 1
    if end > begin:
        changes[min(round(begin), last)] += 1
        changes[min(round(end), last)] -= 1
