from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.plan.types import SloTargets, StepCoefficients
from trimtab.tuning.decide import decide
from trimtab.tuning.memory import Memory
from trimtab.tuning.types import Lever, Objectives, Observation, Percentiles

Make = Callable[..., Any]


def test_the_limit_comes_first_and_is_the_largest_batch_within_tpot(make_world: Make) -> None:
    world = make_world(limit=8)
    (first, *_) = world.tick()
    assert first.lever is Lever.LIVE_LIMIT
    world.run(600)
    model, target = world.model, world.objectives.slo.tpot[0.95]
    assert world.spread * model.tpot(world.limit) <= target
    assert world.spread * model.tpot(world.limit * 1.25 + 2) > target, "not smaller than it must be"


def test_a_machine_slower_than_planned_gets_a_smaller_limit(make_world: Make) -> None:
    fast, slow = make_world(rate=2.0), make_world(rate=2.0, slow=1.8)
    fast.run(1200)
    slow.run(1200)
    assert slow.limit < 0.7 * fast.limit
    assert slow.spread * slow.model.tpot(slow.limit) <= 1.05 * slow.objectives.slo.tpot[0.95]


def test_more_load_than_one_replica_holds_brings_replicas_and_says_why(make_world: Make) -> None:
    world = make_world(rate=1.0)
    world.run(900)
    assert world.wanted == 1
    capacity = world.model.requests_per_s(world.limit)
    world.rate = 2.5 * capacity
    made = [d for d in world.run(300) if d.lever is Lever.REPLICAS]
    assert made
    assert made[-1].to_value >= 3
    assert "requests/s need" in made[0].sentence
    assert made[0].expected is not None
    assert any("liveLimit" in text for text in made[0].rejected)
    world.run(900)
    assert world.observe().ttft.p95 < 1.0
    assert world.wanted <= 5, "no overshoot after the backlog is gone"


def test_replicas_fall_slowly_and_only_after_a_quiet_window(make_world: Make) -> None:
    world = make_world(rate=28.0, ready=6, wanted=6)
    world.run(900)
    before = world.wanted
    assert before >= 4
    world.rate = 1.0
    assert [d for d in world.run(270) if d.lever is Lever.REPLICAS] == []
    world.run(900)
    assert world.wanted <= 0.4 * before + 1.5, "down to the floor that the rule of thumb keeps"


def test_after_a_restart_of_the_operator_nothing_is_scaled_down_before_a_window_was_seen(make_world: Make) -> None:
    world = make_world(rate=1.0, ready=4, wanted=4)
    assert [d for d in world.run(570) if d.lever is Lever.REPLICAS] == []
    world.run(300)
    assert world.wanted < 4


def test_cache_hits_are_taken_off_the_need(make_world: Make) -> None:
    cold, warm = make_world(rate=12.0, ready=5, wanted=5), make_world(rate=12.0, ready=5, wanted=5, hit_ratio=0.8)
    cold.run(1800)
    warm.run(1800)
    assert warm.wanted < cold.wanted


def test_a_flat_load_is_left_alone_for_hours(make_world: Make) -> None:
    world = make_world(rate=6.0, ready=3, wanted=3)
    world.run(1800)
    later = world.run(12 * 3600)
    assert len([d for d in later if d.lever is Lever.REPLICAS]) <= 1, "the rule of thumb hands over once"
    assert [d for d in later if d.lever is Lever.LIVE_LIMIT] == []


def test_the_effect_of_a_decision_is_checked_later(make_world: Make) -> None:
    world = make_world(rate=1.0)
    world.run(900)
    world.rate = 16.0
    world.run(120)
    effects = []
    for _ in range(60):
        world.tick()
        effects += world.memory.effects
    found = {effect.decision_id: effect for effect in effects}
    scales = [d.id for d in world.decisions if d.lever is Lever.REPLICAS]
    assert set(scales[-2:]) <= set(found), "none is left without a word"
    assert "ttft p95 is" in found[scales[-1]].sentence


def test_the_cold_start_is_measured(make_world: Make) -> None:
    world = make_world(rate=1.0, cold_s=240.0)
    world.run(900)
    world.rate = 8.0
    world.run(900)
    assert world.memory.cold_start_s == pytest.approx(240, abs=30)


def test_pending_pods_are_not_ordered_again(make_world: Make) -> None:
    world = make_world(rate=1.0, cold_s=600.0)
    world.run(900)
    world.rate = 4.0
    made = [d for d in world.run(300) if d.lever is Lever.REPLICAS]
    assert len(made) <= 2
    assert world.wanted <= 4


def test_advise_decides_and_marks_it_as_not_to_apply(make_world: Make, objectives: Objectives) -> None:
    world = make_world(objectives=replace(objectives, mode="Advise"), rate=10.0)
    made = world.run(120)
    assert made
    assert not any(d.apply for d in made)
    assert len([d for d in world.run(900) if d.lever is Lever.LIVE_LIMIT]) <= 2, "the same advice is given once"


def test_off_decides_nothing(make_world: Make, objectives: Objectives) -> None:
    world = make_world(objectives=replace(objectives, mode="Off"), rate=10.0)
    assert world.run(300) == []
    assert world.memory.hold.reason == "TuningOff"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"age_s": None}, "MetricsMissing", id="no series at all"),
        pytest.param({"arrivals_per_s": None}, "MetricsMissing", id="no arrivals series"),
        pytest.param({"age_s": 300.0}, "MetricsStale", id="old samples"),
        pytest.param({"arrivals_per_s": float("nan")}, "MetricsContradictory", id="NaN"),
        pytest.param({"queued": -1.0}, "MetricsContradictory", id="negative"),
        pytest.param({"pods_reporting": 1}, "MetricsIncomplete", id="a pod is not scraped"),
        pytest.param({"replicas_ready": 0, "pods_reporting": 0}, "MetricsContradictory", id="served by nobody"),
        pytest.param(
            {"arrivals_per_s": 0.1, "served_per_s": 9.0, "in_flight": 0.0, "queued": 0.0},
            "MetricsContradictory",
            id="more answers than requests",
        ),
    ],
)
def test_holds_what_is(make_world: Make, changes: dict[str, Any], reason: str) -> None:
    world = make_world(rate=9.0, ready=4, wanted=4)
    world.run(900)
    for _ in range(80):
        assert world.tick(**changes) == ()
        assert world.memory.hold.reason == reason
    world.tick()
    assert world.memory.hold is None


def test_never_scales_down_on_silence(make_world: Make) -> None:
    world = make_world(rate=28.0, ready=6, wanted=6)
    world.run(900)
    before = world.wanted
    assert before >= 4
    for _ in range(200):
        world.tick(arrivals_per_s=None, in_flight=None, age_s=None)
    assert world.wanted == before


def test_fixed_replicas_are_left_alone_and_the_limit_still_moves(make_world: Make, objectives: Objectives) -> None:
    world = make_world(objectives=replace(objectives, fixed_replicas=2), rate=20.0, ready=2, wanted=2, limit=8)
    made = world.run(600)
    assert {d.lever for d in made} == {Lever.LIVE_LIMIT}


def test_the_budget_bounds_the_replicas(make_world: Make, objectives: Objectives) -> None:
    bounded = replace(objectives, price_per_replica_hour=2.0, max_hourly_cost=6.5)
    world = make_world(objectives=bounded, rate=30.0)
    world.run(900)
    assert world.wanted == 3
    assert any("maxHourlyCost" in d.sentence for d in world.decisions)


def test_replicas_above_the_bounds_come_down_at_once(make_world: Make, objectives: Objectives) -> None:
    world = make_world(objectives=replace(objectives, max_replicas=2), rate=30.0, ready=5, wanted=5)
    world.tick()
    assert world.wanted == 2


def test_unschedulable_pods_are_not_asked_for_again(make_world: Make) -> None:
    world = make_world(rate=1.0)
    world.run(900)
    world.rate = 8.0
    made = world.tick(replicas_wanted=4, replicas_ready=1, replicas_pending=3, replicas_unschedulable=3)
    scale = [d for d in made if d.lever is Lever.REPLICAS]
    assert [d.to_value for d in scale] in ([], [1])


def test_without_step_times_the_fallback_law_follows_measurements(make_world: Make, objectives: Objectives) -> None:
    plain = replace(objectives, step=None, planned_limit=None, kv_tokens=None)
    alone = make_world(objectives=replace(plain, fixed_replicas=1), rate=9.0, limit=200, slow=2.0)
    alone.run(1200)
    assert alone.limit < 100
    assert any("measured TPOT" in d.sentence for d in alone.decisions)
    fleet = make_world(objectives=plain, rate=9.0, limit=60, slow=2.0)
    fleet.run(1200)
    assert fleet.wanted > 1, "requests beyond the limit bring replicas"


def test_feedback_adds_a_replica_when_requests_wait_although_the_model_sees_no_need(make_world: Make) -> None:
    world = make_world(rate=1.0)
    world.run(900)
    late = Percentiles(2.0, 3.0, 4.0)
    made = world.tick(ttft=late, queued=3.0)
    (scale,) = [d for d in made if d.lever is Lever.REPLICAS]
    assert scale.reason == "TtftViolated"
    assert scale.to_value == 2


def test_feedback_rests_when_more_replicas_did_not_help(make_world: Make) -> None:
    world = make_world(rate=1.0)
    world.run(900)
    late = Percentiles(2.0, 3.0, 4.0)
    for _ in range(60):
        world.tick(ttft=late, queued=3.0)
    assert world.wanted <= 3, "TTFT that replicas cannot lower does not buy the whole fleet"


OBJECTIVES = Objectives(
    slo=SloTargets(ttft={0.95: 1.0}, tpot={0.95: 0.06}),
    min_replicas=2,
    max_replicas=8,
    engine_concurrency=256,
    kv_tokens=448_000,
    step=StepCoefficients(11.0, 0.042, 8.3e-5, 0.054),
    planned_limit=32,
)
MEASURED = (
    *("arrivals_per_s", "served_per_s", "in_flight", "queued", "limit", "tokens_in_per_s"),
    *("tokens_out_per_s", "tpot_mean", "hit_ratio", "age_s"),
)
number = st.one_of(st.none(), st.floats(0, 1e4))


@settings(max_examples=150, deadline=None)
@given(
    values=st.fixed_dictionaries(dict.fromkeys(MEASURED, number)),
    replicas=st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5)),
    ticks=st.integers(1, 4),
)
def test_whatever_is_measured_bounds_hold_and_equal_inputs_give_equal_decisions(
    values: dict[str, float | None], replicas: tuple[int, int, int], ticks: int
) -> None:
    memory, again = Memory(), Memory()
    for tick in range(ticks):
        now = 15.0 * tick
        values["hit_ratio"] = min(values["hit_ratio"] or 0.0, 1.0)
        observation = Observation(
            time=now, replicas_wanted=replicas[0], replicas_ready=replicas[1], replicas_pending=replicas[2], **values
        )
        made, memory = decide(observation, OBJECTIVES, memory, now)
        same, again = decide(observation, OBJECTIVES, again, now)
        assert made == same
        assert (memory.limit, memory.replicas, memory.policy) == (again.limit, again.replicas, again.policy)
        for decision in made:
            if decision.lever is Lever.REPLICAS:
                assert OBJECTIVES.min_replicas <= decision.to_value <= OBJECTIVES.max_replicas
            else:
                assert 1 <= decision.to_value <= 256
