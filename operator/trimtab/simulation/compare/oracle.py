"""The clairvoyant optimum: the cheapest schedule of replicas for somebody who knows every request beforehand.

Per window of 15 s the replicas that its work needs; the dearest windows are given up until the objective's allowance is
spent. Level k of the fleet must run when the need is at least k; a gap is bridged when it is shorter than a cold start
and a drain. Levels are independent, so this is exact for the fluid problem (layered argument of Lu and Chen,
arXiv:1112.0442; discrete right-sizing, Albers and Quedenfeld, arXiv:1807.05112).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.simulation.compare.fluid import TICK_S, Load, Policy, Run, Site, View

SMOOTHINGS = (4, 1)
"""Windows over which the need is averaged: with slack in TTFT a short peak need not be met at once."""
FIRST_FACTOR, STRETCH, MAX_TRIES = 0.94, 1.04, 24


@dataclass(frozen=True, slots=True)
class Bounds:
    """The optimum lies between `low_hours` (the work itself) and `high_hours` (a schedule that was seen to work)."""

    low_hours: float
    high_hours: float


class _Schedule:
    """Replays a schedule: orders each replica a cold start before it is needed."""

    name = "oracle"

    def __init__(self, wanted: NDArray[np.int64], cold_ticks: int) -> None:
        self.wanted, self.cold = wanted, cold_ticks

    def replicas(self, view: View) -> int:
        """What must be ready a cold start from now, without dropping what is needed until then."""
        tick = int(view.time // TICK_S)
        return max(int(self.wanted[tick : tick + self.cold + 1].max(initial=1)), 1)


def bounds(
    load: Load,
    site: Site,
    percentile: float,
    score_from_s: int,
    play: Callable[[Policy, int], Run],
    attained: Callable[[Run], float],
) -> Bounds:
    """The interval.

    `play(policy, start replicas)` plays a policy; `attained(run)` gives the share of scored requests that kept the
    objective.
    """
    windows = load.seconds // TICK_S
    need = load.need[: windows * TICK_S].reshape(windows, TICK_S).mean(axis=1)
    first = score_from_s // TICK_S
    # A replica-second does at most one replica-second of work, and a share `percentile` of it must be done.
    low = percentile * float(need[first:].sum()) * TICK_S / 3600.0
    found = []
    for width in SMOOTHINGS:
        spread = np.convolve(np.pad(need, (width - 1, 0), mode="edge"), np.ones(width) / width, mode="valid")
        hours = _cheapest(spread, site, percentile, first, play, attained)
        if hours is not None:
            found.append(hours)
    return Bounds(low, min(found, default=float("inf")))


def _cheapest(
    need: NDArray[np.float64],
    site: Site,
    percentile: float,
    first: int,
    play: Callable[[Policy, int], Run],
    attained: Callable[[Run], float],
) -> float | None:
    """Replica-hours of the first schedule that keeps the objective, stretching the need step by step."""
    factor = FIRST_FACTOR
    for _ in range(MAX_TRIES):
        levels = _levels(need * factor, percentile, first)
        schedule = _Schedule(_bridged(levels, site), site.cold_start_s // TICK_S)
        played = play(schedule, max(int(levels[: first + 1].max(initial=1)), 1))
        if attained(played) >= percentile:
            return played.replica_hours
        factor *= STRETCH
    return None


def _levels(need: NDArray[np.float64], percentile: float, first: int) -> NDArray[np.int64]:
    levels = np.maximum(np.ceil(need - 1e-9), 1).astype(np.int64)
    allowance = (1.0 - percentile) * float(need[first:].sum())
    # Giving up a window is worth most where it saves many replicas for little work.
    order = np.argsort(-(levels[first:] - np.median(levels)), kind="stable") + first
    for window in order.tolist():
        if need[window] <= allowance:
            allowance -= float(need[window])
            neighbours = levels[max(window - 1, 0)], levels[min(window + 1, len(levels) - 1)]
            levels[window] = min(levels[window], *neighbours)
    return levels


def _bridged(levels: NDArray[np.int64], site: Site) -> NDArray[np.int64]:
    """The schedule with every gap filled that is shorter than a cold start and a drain."""
    longest = (site.cold_start_s + site.drain_s) // TICK_S
    result = levels.copy()
    for level in range(2, int(levels.max(initial=1)) + 1):
        on = np.flatnonzero(levels >= level)
        for left, right in zip(on[:-1].tolist(), on[1:].tolist(), strict=True):
            if 1 < right - left <= longest:
                np.maximum(result[left:right], level, out=result[left:right])
    return result
