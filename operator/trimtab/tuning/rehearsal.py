"""Rehearsal: scaling policies are tried, all the time and on the load that really came, in a small model.

A few hundred candidate policies differ in a standing floor, a gain and how long they hold what was needed. Each has a
fluid twin of the deployment (work arrives, replicas clear it, orders take a cold start) that is moved one tick with
each observation. Replicas are then set by the policy that would have kept the objective at the lowest cost on this
deployment's own last day. So nobody has to tune targets, floors or windows, and bursty traffic earns a standing floor
without hindsight. Until four hours are known, a rule of thumb acts instead.

All quantities are in replicas' worth of work (replica-seconds a second); see `replicas.need_of`.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOOR_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GAINS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0, 2.5, 3.0)
HOLDS_S = (120.0, 300.0, 600.0, 1200.0, 2400.0)
_GRID = np.array(list(itertools.product(FLOOR_SHARES, GAINS, HOLDS_S)))
FLOOR_SHARE, GAIN, HOLD_S = _GRID[:, 0], _GRID[:, 1], _GRID[:, 2]
HOLD_INDEX = np.searchsorted(np.array(HOLDS_S), HOLD_S)

MEMORY_S = 86_400.0
"""Half-life of experience."""
BACKLOG_S = 20.0
BACKLOG_SHARE = 0.2
"""A backlog asks for the replicas that clear it in 20 s, but for no more than a fifth of what the load needs:
replicas ordered for a backlog arrive when it is long gone."""
ALLOWANCE_USED = 0.6
"""Share of the objective's allowance that a rehearsed policy may use up; the rest is for what the model leaves out."""
SWITCH_GAIN = 0.04
LEARN_S = 4 * 3600.0
HISTORY_S = 4 * 3600.0
RULE_FLOOR, RULE_GAIN, RULE_GAIN_BY_VARIATION, RULE_HOLD_S = 0.45, 1.1, 0.2, 300.0
MAX_VARIATION = 2.0
BURSTY_VARIATION = 0.7
SMOOTH_S = 60.0
PEAK_HALF_LIFE_S = 2 * 86_400.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How many replicas: at least `floor_share` of the highest load, `gain` times the highest of the hold window."""

    floor_share: float
    gain: float
    hold_s: float
    smooth: bool
    """The load is smoothed over a minute first."""


@dataclass(frozen=True, slots=True, eq=False)
class Twins:
    """State of all candidates' fluid models; arrays have one entry a candidate."""

    ready: Floats
    pending: Floats
    """Shape (ticks of a cold start, candidates): orders by the slot of the tick in which they get ready."""
    backlog: Floats
    """Replica-seconds of work that waits."""
    cost: Floats
    """Replica-ticks paid, old ones counting less."""
    violated: Floats
    """Work (replica-ticks) that came while the backlog exceeded the slack."""
    work: float = 0.0
    ticks: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """Load history and twins of one deployment."""

    tick_s: float
    cold_start_s: float
    slack_s: float
    loads: Floats
    """Need of each tick of the last four hours, oldest first."""
    smooth: Floats
    peak: float = 0.0
    twins: Twins | None = None
    chosen: int | None = None
    late: float = 0.0
    """Work that really came while the objective was broken, old one counting less."""
    total: float = 0.0


def start(tick_s: float, cold_start_s: float, slack_s: float) -> Rehearsal:
    """A rehearsal without experience."""
    return Rehearsal(tick_s, cold_start_s, slack_s, np.empty(0), np.empty(0))


def restart(known: Rehearsal | None, tick_s: float, cold_start_s: float, slack_s: float) -> Rehearsal:
    """A rehearsal with another cold start, that has rehearsed what is known of the load."""
    fresh = start(tick_s, cold_start_s, slack_s)
    if known is None:
        return fresh
    for need in known.loads.tolist():
        fresh = observe(fresh, need)
    return replace(fresh, peak=max(known.peak, fresh.peak), late=known.late, total=known.total)


def observe(rehearsal: Rehearsal, need: float, late: bool = False) -> Rehearsal:
    """Take in one tick: the work that came, and whether the objective was really broken then."""
    keep = int(HISTORY_S / rehearsal.tick_s)
    loads = np.append(rehearsal.loads, need)[-keep:]
    width = max(round(SMOOTH_S / rehearsal.tick_s), 1)
    smooth = np.append(rehearsal.smooth, loads[-width:].mean())[-keep:]
    peak = max(need, rehearsal.peak * 0.5 ** (rehearsal.tick_s / PEAK_HALF_LIFE_S))
    twins = rehearsal.twins or _twins(rehearsal, max(np.ceil(need * 1.5), 1.0))
    fade = 0.5 ** (rehearsal.tick_s / (MEMORY_S / 4))
    return replace(
        rehearsal,
        loads=loads,
        smooth=smooth,
        peak=peak,
        twins=_move(twins, rehearsal, need, smooth, peak),
        late=rehearsal.late * fade + (need if late else 0.0),
        total=rehearsal.total * fade + need,
    )


def _twins(rehearsal: Rehearsal, ready: float) -> Twins:
    count = len(_GRID)
    slots = max(round(rehearsal.cold_start_s / rehearsal.tick_s), 1)
    zeros = np.zeros(count)
    return Twins(np.full(count, ready), np.zeros((slots, count)), zeros, zeros, zeros)


def _held(series: Floats, tick_s: float) -> Floats:
    """Highest value of the last `HOLDS_S` seconds, for each of them."""
    return np.array([series[-max(round(hold / tick_s), 1) :].max() for hold in HOLDS_S])


def _move(twins: Twins, rehearsal: Rehearsal, need: float, smooth: Floats, peak: float) -> Twins:
    tick = rehearsal.tick_s
    slot = twins.ticks % len(twins.pending)
    pending = twins.pending.copy()
    ready = twins.ready + pending[slot]
    pending[slot] = 0.0
    backlog = np.maximum(twins.backlog + (need - ready) * tick, 0.0)
    ordered = pending.sum(axis=0)
    broken = backlog > rehearsal.slack_s * np.maximum(ready, 1e-9)
    held = _held(smooth, tick)[HOLD_INDEX]
    extra = np.minimum(backlog / BACKLOG_S, BACKLOG_SHARE * np.maximum(held, 1.0))
    wanted = np.maximum(np.ceil(np.maximum(FLOOR_SHARE * peak, GAIN * (held + extra)) - 1e-9), 1.0)
    change = wanted - (ready + ordered)
    surplus = np.maximum(-change, 0.0)
    # What is on its way is given up before what serves.
    given_up = np.minimum(surplus, ordered)
    pending *= np.where(ordered > 0, 1.0 - given_up / np.maximum(ordered, 1e-9), 1.0)
    pending[slot] += np.maximum(change, 0.0)
    fade = 0.5 ** (tick / MEMORY_S)
    return Twins(
        ready=ready - (surplus - given_up),
        pending=pending,
        backlog=backlog,
        cost=twins.cost * fade + ready + ordered,
        violated=twins.violated * fade + broken * need,
        work=twins.work * fade + need,
        ticks=twins.ticks + 1,
    )


def choose(rehearsal: Rehearsal, percentile: float) -> tuple[Rehearsal, Policy]:
    """The policy to follow now, for an objective that a share `percentile` of the requests must keep."""
    twins = rehearsal.twins
    if twins is None or twins.ticks * rehearsal.tick_s < LEARN_S:
        return rehearsal, rule_of_thumb(rehearsal)
    allowed = ALLOWANCE_USED * (1.0 - percentile)
    if rehearsal.total > 0:
        # When the real objective is missed more often than allowed, rehearse with less.
        burn = rehearsal.late / rehearsal.total / (1.0 - percentile)
        allowed /= min(max(burn, 1.0), 3.0)
    price = 0.5 / (1.0 - percentile)
    score = twins.cost + price * np.maximum(twins.violated - allowed * twins.work, 0.0)
    best = int(np.argmin(score))
    chosen = rehearsal.chosen
    if chosen is None or score[best] < score[chosen] * (1.0 - SWITCH_GAIN):
        chosen = best
    policy = Policy(float(FLOOR_SHARE[chosen]), float(GAIN[chosen]), float(HOLD_S[chosen]), smooth=True)
    return replace(rehearsal, chosen=chosen), policy


def rule_of_thumb(rehearsal: Rehearsal) -> Policy:
    """For the first hours: the more the load varies from tick to tick, the more room."""
    mean = float(rehearsal.loads.mean()) if len(rehearsal.loads) else 0.0
    # From differences, so that a trend or one lasting step is no variation.
    jumps = float(np.sqrt(np.mean(np.diff(rehearsal.loads) ** 2) / 2.0)) if len(rehearsal.loads) > 1 else 0.0
    variation = jumps / mean if mean > 0 else 0.0
    gain = RULE_GAIN + RULE_GAIN_BY_VARIATION * min(variation, MAX_VARIATION)
    return Policy(RULE_FLOOR, gain, RULE_HOLD_S, smooth=variation <= BURSTY_VARIATION)


def level(rehearsal: Rehearsal, policy: Policy, backlog: float, most_hold_s: float = math.inf) -> float:
    """Replicas that a policy asks for now, unrounded; `backlog` is replica-seconds of waiting work."""
    if not len(rehearsal.loads):
        return 0.0
    series = rehearsal.smooth if policy.smooth else rehearsal.loads
    hold = min(policy.hold_s, most_hold_s)
    held = float(series[-max(round(hold / rehearsal.tick_s), 1) :].max())
    extra = min(backlog / BACKLOG_S, BACKLOG_SHARE * max(held, 1.0))
    return max(policy.floor_share * rehearsal.peak, policy.gain * (held + extra))
