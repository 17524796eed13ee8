"""A fleet of equal replicas behind one queue, moved in steps of one second.

Not every request is followed: the number of requests in the fleet rises with the arrivals of a second (weighted by
their work) and falls by `running / service time`, where the service time follows the step-time model at the momentary
batch. A request waits when every slot (replicas x limit) is taken. Waits, TTFT and TPOT of single requests are read off
the second in which they came. This leaves out imbalance between pods and the spread of service times, so it is kind to
every policy alike; it makes a day of traffic take seconds.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.replay.trace import Trace
from trimtab.tuning.steptime import StepModel

Floats = NDArray[np.float64]

TICK_S = 15
METRICS_WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Site:
    """Where the fleet runs."""

    model: StepModel
    """Speed for the trace's mean request."""
    limit: int
    """Requests in flight in each replica."""
    cold_start_s: int = 120
    drain_s: int = 30
    """Paid after a replica is given up."""
    max_replicas: int = 1000

    def capacity(self) -> float:
        """Requests/s of one replica with a full batch."""
        return self.model.requests_per_s(self.limit)


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees at a tick; rates and gauges are means over the last minute, as Prometheus would show them."""

    time: float
    ready: int
    pending: int
    arrivals_per_s: float
    arrivals_now_per_s: float
    """Over the last tick only."""
    running: float
    """Requests in the engines."""
    waiting: float
    """Requests that wait for a place."""
    ttft_p: tuple[float, float, float]
    """50th, 95th, 99th percentile of the requests of the last minute, seconds."""
    tpot_p: tuple[float, float, float]
    ttft_mean: float
    tpot_mean: float
    input_tokens: float
    """Mean prompt of the last minute's requests."""
    output_tokens: float
    limit: int
    """Requests in flight that each replica may take."""
    capacity: float
    """Requests/s of one replica with a full batch, as a benchmark would have told."""
    full_tpot: float
    """Time per output token with a full batch."""

    @property
    def wanted(self) -> int:
        """Replicas that exist or are on their way."""
        return self.ready + self.pending

    @property
    def held(self) -> float:
        """Requests running or waiting."""
        return self.running + self.waiting


class Policy(Protocol):
    """Anything that sets replicas; keeps its own state."""

    name: str

    def replicas(self, view: View) -> int:
        """Replicas wanted now."""


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a policy. Arrays have one entry a request, except `ready`, `paid` and `load`: one a second."""

    ttft_s: Floats
    tpot_s: Floats
    latency_s: Floats
    scored: NDArray[np.bool_]
    """Requests after the warm-up."""
    ready: Floats
    paid: Floats
    """Replicas paid: ready, starting and draining."""
    load: Floats
    """Replicas' worth of work that arrives."""
    scale_events: int
    score_from_s: int

    @property
    def replica_hours(self) -> float:
        """Paid after the warm-up."""
        return float(self.paid[self.score_from_s :].sum()) / 3600.0


@dataclass(slots=True)
class _Fleet:
    """Replicas over time."""

    ready: int
    orders: list[tuple[int, int]]
    draining: list[tuple[int, int]]
    events: int = 0

    def arrive(self, second: int) -> None:
        if self.orders and self.orders[0][0] <= second:
            self.ready += sum(count for due, count in self.orders if due <= second)
            self.orders = [order for order in self.orders if order[0] > second]
        if self.draining and self.draining[0][0] <= second:
            self.draining = [drain for drain in self.draining if drain[0] > second]

    @property
    def pending(self) -> int:
        return sum(count for _, count in self.orders)

    @property
    def paid(self) -> int:
        return self.ready + self.pending + sum(count for _, count in self.draining)

    def set(self, wanted: int, second: int, site: Site) -> None:
        change = wanted - self.ready - self.pending
        if change == 0:
            return
        self.events += 1
        if change > 0:
            self.orders.append((second + site.cold_start_s, change))
            return
        surplus = -change
        # The youngest orders are given up first, as a ReplicaSet prefers pods that are not ready.
        while surplus and self.orders:
            due, count = self.orders.pop()
            if count > surplus:
                self.orders.append((due, count - surplus))
            surplus -= min(count, surplus)
        if surplus:
            self.ready -= surplus
            self.draining.append((second + site.drain_s, surplus))


class Load:
    """A trace prepared for a site: work by second."""

    def __init__(self, trace: Trace, site: Site) -> None:
        self.trace = trace
        self.seconds = int(np.ceil(trace.span_s)) + 1
        self.second = np.minimum(trace.arrival_s.astype(np.int64), self.seconds - 1)
        model = site.model
        full = model.tpot(site.limit)
        prefill = model.prefill_s * trace.input_tokens / max(float(trace.input_tokens.mean()), 1.0)
        service = prefill + trace.output_tokens * full
        self.prefill_s = prefill
        # Each request counts by its work, so that long ones fill more of the fleet than short ones.
        self.weight = service / service.mean()
        self.arrivals = np.bincount(self.second, weights=self.weight, minlength=self.seconds)
        self.counts = np.bincount(self.second, minlength=self.seconds).astype(np.float64)
        self.tokens_in = np.bincount(self.second, weights=trace.input_tokens, minlength=self.seconds)
        self.tokens_out = np.bincount(self.second, weights=trace.output_tokens, minlength=self.seconds)
        self.need = self.arrivals / site.capacity()


def run(load: Load, site: Site, policy: Policy, start_replicas: int, score_from_s: int) -> Run:
    """Play a trace under a policy. The fleet starts warm; requests before `score_from_s` are not scored."""
    fleet = _Fleet(start_replicas, [], [])
    wait, tpot, ready, paid = (np.zeros(load.seconds) for _ in range(4))
    running, waiting = np.zeros(load.seconds), np.zeros(load.seconds)
    inside = 0.0
    model = site.model
    const, slope, prefill, tokens = model.const_s, model.slope_s, model.prefill_s, model.output_tokens
    for second, arrived in enumerate(load.arrivals.tolist()):
        fleet.arrive(second)
        replicas = fleet.ready
        slots = float(replicas * site.limit)
        inside += arrived
        busy = min(inside, slots)
        per_token = const + slope * (busy / replicas if replicas else site.limit)
        service = prefill + tokens * per_token
        rate = busy / service
        queue = inside - busy
        # With a full fleet the rate stays as it is until the queue is gone.
        wait[second] = queue / rate if queue > 0 and rate > 0 else (site.cold_start_s if queue > 0 else 0.0)
        tpot[second], ready[second] = per_token, replicas
        running[second], waiting[second] = busy, queue
        inside = max(inside - rate, 0.0)
        paid[second] = fleet.paid
        if second % TICK_S == TICK_S - 1:
            view = _view(load, site, fleet, second, wait, tpot, running, waiting)
            wanted = min(max(policy.replicas(view), 1), site.max_replicas)
            fleet.set(wanted, second + 1, site)
    first = wait[load.second] + load.prefill_s + tpot[load.second]
    each = tpot[load.second]
    latency = first + np.maximum(load.trace.output_tokens - 1, 0) * each
    return Run(first, each, latency, load.second >= score_from_s, ready, paid, load.need, fleet.events, score_from_s)


def _view(
    load: Load, site: Site, fleet: _Fleet, second: int, wait: Floats, tpot: Floats, running: Floats, waiting: Floats
) -> View:
    window = slice(max(second - METRICS_WINDOW_S + 1, 0), second + 1)
    counts = load.counts[window]
    total = float(counts.sum())
    mean_prefill = site.model.prefill_s
    return View(
        time=float(second + 1),
        ready=fleet.ready,
        pending=fleet.pending,
        arrivals_per_s=total / len(counts),
        arrivals_now_per_s=float(load.counts[max(second - TICK_S + 1, 0) : second + 1].mean()),
        running=float(running[window].mean()),
        waiting=float(waiting[window].mean()),
        ttft_p=_percentiles(wait[window] + tpot[window] + mean_prefill, counts),
        tpot_p=_percentiles(tpot[window], counts),
        ttft_mean=float((wait[window] * counts).sum() / total) + mean_prefill if total else mean_prefill,
        tpot_mean=float((tpot[window] * counts).sum() / total) if total else float(tpot[second]),
        input_tokens=float(load.tokens_in[window].sum() / total) if total else 0.0,
        output_tokens=float(load.tokens_out[window].sum() / total) if total else 0.0,
        limit=site.limit,
        capacity=site.capacity(),
        full_tpot=site.model.tpot(site.limit),
    )


def _percentiles(values: Floats, counts: Floats) -> tuple[float, float, float]:
    total = counts.sum()
    if total <= 0:
        return (0.0, 0.0, 0.0)
    order = np.argsort(values)
    rank = np.cumsum(counts[order])
    found = [values[order][min(int(np.searchsorted(rank, p * total)), len(rank) - 1)] for p in (0.5, 0.95, 0.99)]
    return (float(found[0]), float(found[1]), float(found[2]))
