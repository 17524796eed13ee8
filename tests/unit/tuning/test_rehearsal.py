import math

import numpy as np
import pytest

from trimtab.tuning.rehearsal import RULE_GAIN, Rehearsal, choose, level, observe, restart, rule_of_thumb, start
from trimtab.tuning.replicas import DOWN_BAND

TICK = 15.0
COLD = 120.0
SLACK = 2.0


def play(loads: np.ndarray, percentile: float = 0.99) -> tuple[float, float, int, list[int]]:
    """A fluid deployment driven by the rehearsal: (share of work in time, mean replicas, scale events, replicas).

    The first ten minutes warm it up and do not count.
    """
    rehearsal = start(TICK, COLD, SLACK)
    slots = round(COLD / TICK)
    ready, backlog, paid, late, came = math.ceil(loads[0] * 1.5), 0.0, 0.0, 0.0, 0.0
    pending: list[tuple[int, int]] = []
    seen: list[int] = []
    events = 0
    for tick, need in enumerate(loads.tolist()):
        ready += sum(count for due, count in pending if due == tick)
        pending = [(due, count) for due, count in pending if due > tick]
        backlog = max(backlog + (need - ready) * TICK, 0.0)
        broken = backlog > SLACK * ready
        current = ready + sum(count for _, count in pending)
        if tick >= 40:
            paid, came, late = paid + current, came + need, late + need * broken
        rehearsal = observe(rehearsal, need, broken)
        rehearsal, policy = choose(rehearsal, percentile)
        recent, held = level(rehearsal, policy, backlog, 120.0), level(rehearsal, policy, backlog)
        if recent > current:
            pending.append((tick + slots, math.ceil(recent) - current))
            events += tick >= 40
        elif math.ceil(held + DOWN_BAND) < current:
            surplus = current - math.ceil(held + DOWN_BAND)
            waiting = sum(count for _, count in pending)
            pending = [] if surplus >= waiting else pending
            ready -= max(surplus - waiting, 0)
            events += tick >= 40
        seen.append(current)
    return 1.0 - late / came, paid / (len(loads) - 40), events, seen


def noisy(mean: np.ndarray, per_tick: float = 600.0, seed: int = 0) -> np.ndarray:
    """Poisson noise of `per_tick` requests a tick at a load of 8."""
    rng = np.random.default_rng(seed)
    return rng.poisson(mean / 8.0 * per_tick) / per_tick * 8.0


def test_a_flat_load_moves_at_most_one_replica_a_day() -> None:
    kept, mean, events, _ = play(noisy(np.full(5760, 8.0)))
    assert kept >= 0.99
    assert events <= 1
    assert mean <= 9.6


def test_a_step_of_three_times_is_absorbed_without_overshoot() -> None:
    loads = noisy(np.where(np.arange(960) < 480, 8.0, 24.0))
    _, _, _, replicas = play(loads)
    assert max(replicas) <= 1.25 * math.ceil(24.0 * 1.1)
    assert min(replicas[-100:]) >= 24


def test_a_daily_wave_is_followed_at_little_more_than_its_cost() -> None:
    ticks = np.arange(3 * 5760)
    loads = noisy(8.0 - 5.0 * np.cos(2 * np.pi * ticks / 5760))
    kept, mean, _, _ = play(loads)
    assert kept >= 0.99
    assert mean <= 1.2 * loads.mean(), "the peak would cost 1.6 times the mean"


def test_short_bursts_earn_a_standing_floor() -> None:
    """A burst of one minute every half hour is over before a cold start: only what stands helps."""
    ticks = np.arange(2 * 5760)
    loads = noisy(np.where(ticks % 120 < 4, 20.0, 1.0))
    kept, _, _, replicas = play(loads)
    assert kept >= 0.95, "the first hours go by a rule of thumb"
    last_day = replicas[5760:]
    quiet = [r for i, r in enumerate(last_day) if i % 120 > 100]
    assert np.median(quiet) >= 15


def test_a_laxer_objective_costs_less() -> None:
    ticks = np.arange(2 * 5760)
    loads = noisy(np.where(ticks % 120 < 4, 12.0, 4.0))
    strict, lax = play(loads, 0.99), play(loads, 0.5)
    assert lax[1] < strict[1]


def test_the_rule_of_thumb_gives_bursty_load_more_room() -> None:
    calm, wild = start(TICK, COLD, SLACK), start(TICK, COLD, SLACK)
    rng = np.random.default_rng(1)
    for _ in range(60):
        calm = observe(calm, 8.0)
        wild = observe(wild, float(rng.choice([0.0, 0.0, 0.0, 32.0])))
    assert rule_of_thumb(calm).gain < rule_of_thumb(wild).gain
    assert rule_of_thumb(calm).smooth
    assert not rule_of_thumb(wild).smooth


def test_one_lasting_step_is_not_taken_for_burstiness() -> None:
    rehearsal = start(TICK, COLD, SLACK)
    for need in [8.0] * 60 + [24.0] * 60:
        rehearsal = observe(rehearsal, need)
    assert rule_of_thumb(rehearsal).gain < RULE_GAIN + 0.03


def test_a_backlog_asks_for_a_fifth_more_at_most() -> None:
    rehearsal = start(TICK, COLD, SLACK)
    for _ in range(20):
        rehearsal = observe(rehearsal, 10.0)
    policy = rule_of_thumb(rehearsal)
    assert level(rehearsal, policy, 1e6) == pytest.approx(1.2 * level(rehearsal, policy, 0.0))


def test_a_new_cold_start_is_rehearsed_on_what_is_known() -> None:
    rehearsal = start(TICK, COLD, SLACK)
    loads = noisy(np.full(1200, 8.0))
    for need in loads.tolist():
        rehearsal = observe(rehearsal, need)
    again: Rehearsal = restart(rehearsal, TICK, 300.0, SLACK)
    assert again.cold_start_s == 300.0
    assert again.loads.tolist() == rehearsal.loads.tolist()
    assert again.twins is not None
    assert again.twins.pending.shape[0] == 20


def test_taking_in_a_tick_leaves_the_old_state_untouched() -> None:
    before = observe(start(TICK, COLD, SLACK), 5.0)
    assert before.twins is not None
    ready, cost = before.twins.ready.copy(), before.twins.cost.copy()
    observe(before, 50.0)
    assert before.twins.ready.tolist() == ready.tolist()
    assert before.twins.cost.tolist() == cost.tolist()
