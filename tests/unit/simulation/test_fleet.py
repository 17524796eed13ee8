from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trimtab.catalog.steptime import step_time_model
from trimtab.replay.trace import Source, Trace, from_columns
from trimtab.simulation.caching import CacheSettings
from trimtab.simulation.engine import Engine
from trimtab.simulation.fleet import Fleet, FleetSettings
from trimtab.simulation.policy import Action, Snapshot, Static
from trimtab.simulation.prompts import Prompt
from trimtab.simulation.records import Outcome
from trimtab.simulation.replica import Admission
from trimtab.simulation.settings import Settings
from trimtab.simulation.workload import Workload, from_trace


def poisson(rate: float, seconds: float, seed: int = 0, inputs: int = 500, outputs: int = 60) -> Trace:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    sizes = rng.integers(inputs // 2, inputs * 3 // 2, len(times)), rng.integers(2, 2 * outputs, len(times))
    return from_columns("poisson", times, *sizes, Source("memory", "test"))


@dataclass
class Script:
    """A policy that does what it is told at given times and keeps what it saw."""

    actions: dict[float, Action]
    interval_s: float = 5.0
    seen: list[Snapshot] = field(default_factory=list)

    def decide(self, snapshot: Snapshot) -> Action:
        self.seen.append(snapshot)
        return self.actions.get(snapshot.time, Action())


@pytest.fixture
def fleet(settings, times):
    def build(**changes) -> FleetSettings:
        return FleetSettings(engine=settings, times=times, **changes)

    return build


def run(settings: FleetSettings, trace, policy=None):
    workload = trace if isinstance(trace, Workload) else from_trace(trace)
    return Fleet(settings, workload, policy or Static()).run()


def test_the_same_seed_gives_the_same_records_and_another_one_does_not(fleet):
    trace = poisson(6, 60)
    first, again = (run(fleet(replicas=3), trace).records for _ in range(2))
    assert np.array_equal(first.end_s, again.end_s)
    assert not np.array_equal(first.end_s, run(fleet(replicas=3, seed=1), trace).records.end_s)


REQUESTS = st.lists(
    st.tuples(st.floats(0, 4), st.integers(1, 2500), st.integers(1, 200), st.integers(0, 5)), min_size=1, max_size=25
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, capacity=st.sampled_from([6000, 100_000]), chunking=st.booleans())
def test_one_replica_does_exactly_what_the_engine_does_pass_by_pass(requests, capacity, chunking):
    times = step_time_model("meta-llama/Llama-3.1-8B-Instruct", "A100-80GB")
    settings = Settings(
        max_input_tokens=3000,
        max_total_tokens=4096,
        max_batch_prefill_tokens=1024 if chunking else 4096,
        capacity_tokens=capacity,
        chunking=chunking,
    )
    requests = sorted(requests, key=lambda request: request[0])
    workload = Workload(
        [request[0] for request in requests],
        [Prompt.whole(key * 10_000 + tokens, tokens) for _, tokens, _, key in requests],
        [request[2] for request in requests],
        None,
        list(range(len(requests))),
        5.0,
    )
    records = run(FleetSettings(engine=settings, times=times), workload).records
    engine, now, waiting = Engine(settings, times), 0.0, list(range(len(requests)))
    entries = {}
    while True:
        while waiting and workload.arrival_s[waiting[0]] <= now:
            index = waiting.pop(0)
            entries[index] = engine.submit(
                workload.arrival_s[index], workload.prompts[index], workload.output_tokens[index]
            )
        step = engine.step(now)
        if step is not None:
            now += step.duration_s
            continue
        ready = engine.next_ready()
        soonest = min([workload.arrival_s[waiting[0]]] if waiting else [float("inf")], default=float("inf"))
        soonest = min(soonest, ready if ready is not None else float("inf"))
        if soonest == float("inf"):
            break
        now = max(now, soonest)
    for index, entry in entries.items():
        assert records.first_s[index] == pytest.approx(entry.first_token_at, abs=1e-9)
        assert records.end_s[index] == pytest.approx(entry.last_token_at, abs=1e-9)
        assert records.output_tokens[index] == entry.generated


def test_more_replicas_make_it_faster_and_the_least_loaded_one_beats_chance(fleet):
    trace = poisson(20, 60)
    tails = {
        (count, balancer): run(fleet(replicas=count, balancer=balancer), trace).records
        for count, balancer in ((2, "random"), (4, "random"), (4, "least-outstanding"), (4, "round-robin"))
    }
    p95 = {key: records.percentiles(records.latency_s)[1] for key, records in tails.items()}
    assert p95[4, "random"] < p95[2, "random"]
    assert p95[4, "least-outstanding"] < p95[4, "random"]
    counts = np.bincount(tails[4, "round-robin"].replica)
    assert counts.max() - counts.min() <= 1


def test_everything_is_answered_and_counted_once(fleet):
    trace = poisson(10, 60)
    policy = Script({})
    result = run(fleet(replicas=2), trace, policy)
    assert result.records.count(Outcome.SERVED) == len(trace)
    watched = policy.seen[-1].time
    assert sum(snapshot.window.arrivals for snapshot in policy.seen) == (trace.arrival_s <= watched).sum()
    assert sum(snapshot.window.served for snapshot in policy.seen) == (result.records.end_s <= watched).sum()
    busiest = max(policy.seen, key=lambda snapshot: snapshot.window.served).window
    assert busiest.in_flight == pytest.approx(busiest.served / busiest.seconds * np.mean(busiest.latency_s), rel=0.5)
    assert busiest.decode_s > 0
    assert busiest.decode_passes >= 1


def test_the_limit_holds_requests_back_in_the_sidecar_and_can_be_moved_live(fleet):
    trace = poisson(20, 40)
    policy = Script({20.0: Action(limit=40)}, interval_s=1.0)
    records = run(fleet(admission=Admission(max_in_flight=4)), trace, policy).records
    before = [snapshot for snapshot in policy.seen if 2 < snapshot.time < 20]
    after = [snapshot for snapshot in policy.seen if 22 < snapshot.time < 40]
    assert max(replica.in_flight for snapshot in before for replica in snapshot.replicas) == 4
    assert max(replica.in_flight for snapshot in after for replica in snapshot.replicas) > 10
    assert max(replica.queued for snapshot in before for replica in snapshot.replicas) > 10
    assert records.count(Outcome.SERVED) == len(trace)


def test_a_full_queue_refuses_and_patience_ends(fleet):
    trace = poisson(20, 30)
    bounded = run(fleet(admission=Admission(max_in_flight=2, max_queue=3)), trace).records
    assert bounded.count(Outcome.REJECTED) > 0
    patient = run(fleet(admission=Admission(max_in_flight=2, queue_timeout_s=1.0)), trace).records
    gave_up = patient.outcome == Outcome.TIMED_OUT
    assert gave_up.sum() > 0
    assert patient.latency_s[gave_up] == pytest.approx(1.0)
    waited = patient.sent_s - patient.arrival_s
    assert np.nanmax(waited) <= 1.0


def test_permits_of_the_engine_refuse_at_once(fleet, settings):
    tight = replace(settings, max_concurrent_requests=2)
    records = run(replace(fleet(), engine=tight), poisson(20, 20)).records
    rejected = records.outcome == Outcome.REJECTED
    assert rejected.any()
    assert np.all(records.latency_s[rejected] == 0)


def test_a_new_replica_serves_after_its_boot_and_costs_from_the_start(fleet):
    trace = poisson(10, 120)
    policy = Script({30.0: Action(replicas=3)})
    result = run(fleet(boot_s=40.0), trace, policy)
    assert len(result.spans) == 3
    late = [span for span in result.spans if span.created_s == 30.0]
    assert [span.ready_s for span in late] == [70.0, 70.0]
    for span in late:
        assert result.records.arrival_s[result.records.replica == span.number].min() >= 70.0
    assert result.replica_hours * 3600 == pytest.approx(result.end_s + 2 * (result.end_s - 30.0))
    booting = next(snapshot for snapshot in policy.seen if snapshot.time == 50.0)
    assert (booting.ready, booting.booting, booting.wanted) == (1, 2, 3)


def test_scaling_down_drains_and_loses_nothing(fleet):
    trace = poisson(12, 90)
    result = run(fleet(replicas=3), trace, Script({30.0: Action(replicas=1)}))
    assert result.records.count(Outcome.SERVED) == len(trace)
    gone = [span.gone_s for span in result.spans if span.number > 0]
    assert all(30.0 <= time < 60.0 for time in gone), "the youngest go, after their last request"
    assert result.changes[0].after == 1


def test_booting_replicas_go_first(fleet):
    policy = Script({5.0: Action(replicas=4), 10.0: Action(replicas=2)})
    result = run(fleet(replicas=2, boot_s=60.0), poisson(2, 60), policy)
    assert sorted(span.gone_s for span in result.spans)[:2] == [10.0, 10.0]


def test_a_replica_that_does_not_drain_in_time_loses_its_requests(fleet):
    trace = from_columns(
        "one", np.array([0.0]), np.array([100]), np.array([1000]), Source("memory", "test"), span_s=60.0
    )
    result = run(fleet(drain_s=1.0), trace, Script({5.0: Action(replicas=0)}))
    assert result.records.count(Outcome.BROKEN) == 1
    assert result.records.end_s[0] == 6.0


def test_without_a_replica_requests_fail_or_wait_for_one(fleet):
    trace = poisson(2, 60)
    policy = {0.0: Action(replicas=1)}
    lost = run(fleet(replicas=0, boot_s=20.0), trace, Script(dict(policy))).records
    early = lost.arrival_s < 20.0
    assert np.all(lost.outcome[early] == Outcome.UNAVAILABLE)
    assert np.all(lost.outcome[~early] == Outcome.SERVED)
    held = run(fleet(replicas=0, boot_s=20.0, hold_s=30.0), trace, Script(dict(policy))).records
    assert np.all(held.outcome == Outcome.SERVED)
    assert held.ttft_s[0] > 20.0 - held.arrival_s[0]


def repeated(count: int, gap: float) -> Workload:
    times = [index * gap for index in range(count)]
    return Workload(times, [Prompt.whole(1, 400)] * count, [50] * count, None, [1] * count, count * gap)


def test_equal_requests_are_answered_once(fleet):
    spread = run(fleet(cache=CacheSettings("pod")), repeated(10, 10.0)).records
    assert (spread.count(Outcome.SERVED), spread.count(Outcome.HIT)) == (1, 9)
    together = run(fleet(cache=CacheSettings("pod")), repeated(10, 0.01)).records
    assert (together.count(Outcome.SERVED), together.count(Outcome.SHARED)) == (1, 9)
    assert together.end_s[1:] == pytest.approx(together.end_s[0] + CacheSettings().hit_s)
    expired = run(fleet(cache=CacheSettings("pod", ttl_s=5.0)), repeated(10, 10.0)).records
    assert expired.count(Outcome.SERVED) == 10


def test_pods_share_answers_only_through_a_shared_tier(fleet):
    counts = {
        scope: run(
            fleet(replicas=4, balancer="round-robin", cache=CacheSettings(scope)), repeated(40, 10.0)
        ).records.count(Outcome.SERVED)
        for scope in ("off", "pod", "shared")
    }
    assert counts == {"off": 40, "pod": 4, "shared": 1}


def test_those_who_shared_a_failed_request_try_again(fleet):
    workload = repeated(3, 0.01)
    refused = fleet(cache=CacheSettings("pod"), admission=Admission(max_in_flight=1, max_queue=0))
    records = run(refused, workload).records
    assert records.count(Outcome.SERVED) == 1
    assert records.count(Outcome.SHARED) == 2
    stopped = fleet(replicas=1, drain_s=0.1, cache=CacheSettings("shared"), boot_s=0.0)
    records = run(
        stopped, workload, Script({0.2: Action(replicas=0), 0.25: Action(replicas=1)}, interval_s=0.05)
    ).records
    assert records.count(Outcome.BROKEN) == 1
    assert records.count(Outcome.SERVED) + records.count(Outcome.SHARED) == 2


def test_prefix_blocks_of_a_trace_speed_up_the_prefill(fleet):
    base = poisson(3, 60, inputs=1500)
    blocks = tuple(tuple(range(int(tokens) // 512 + 1)) for tokens in base.input_tokens)
    sharing = replace(base, prefix_blocks=blocks)
    alone, shared = run(fleet(), base).records, run(fleet(), sharing).records
    assert shared.percentiles(shared.ttft_s)[0] < 0.7 * alone.percentiles(alone.ttft_s)[0]


def test_reserving_more_than_is_generated_limits_the_batch(fleet, settings):
    small = replace(settings, capacity_tokens=12_000)
    trace = poisson(8, 60)
    exact = Fleet(replace(fleet(), engine=small), from_trace(trace), Static()).run().records
    generous = Fleet(replace(fleet(), engine=small), from_trace(trace, 2000), Static()).run().records
    assert generous.percentiles(generous.ttft_s)[1] > exact.percentiles(exact.ttft_s)[1]
    assert np.array_equal(generous.output_tokens, exact.output_tokens), "answers end by themselves"
