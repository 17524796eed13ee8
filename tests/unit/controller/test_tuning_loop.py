"""The tuning loop: what a tick changes, and that it holds when it cannot see."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.unit.controller.fakes.world import KEY, World

from trimtab.catalog.catalogue import load_catalogue
from trimtab.controller.decided import Decided
from trimtab.controller.events import Events
from trimtab.controller.metrics import Metrics
from trimtab.controller.objects import LLM_DEPLOYMENT, Key, Ref
from trimtab.controller.planning import CachedPlanner
from trimtab.controller.tuning_loop import UNSET, TuningLoop
from trimtab.telemetry.prometheus import TelemetryUnavailableError
from trimtab.tuning.types import Observation, Percentiles

SPEC: dict[str, Any] = {
    "model": {"id": "org/model"},
    "slo": {"ttft": {"p95": "2s"}, "tpot": {"p95": "50ms"}},
    "scaling": {"minReplicas": 2, "maxReplicas": 5},
}
RESOURCE = Ref(LLM_DEPLOYMENT, KEY.namespace, KEY.name)


def _busy(**changes: Any) -> Observation:
    """Two pods under a load that breaks the objective of time per token."""
    base = Observation(
        time=0.0,
        age_s=5.0,
        pods_reporting=2,
        arrivals_per_s=20.0,
        served_per_s=10.0,
        rejected_per_s=0.0,
        errors_per_s=0.0,
        hit_ratio=0.1,
        in_flight=60.0,
        queued=40.0,
        limit=32.0,
        tokens_in_per_s=10_000.0,
        tokens_out_per_s=2_500.0,
        ttft=Percentiles(2.0, 6.0, 8.0),
        tpot=Percentiles(0.08, 0.12, 0.15),
        latency=Percentiles(10.0, 20.0, 30.0),
        ttft_mean=2.5,
        tpot_mean=0.08,
        latency_mean=12.0,
        queue_wait_mean=2.0,
    )
    return replace(base, **changes)


@dataclass
class FakeObserver:
    """Answers as told and counts how often it was asked."""

    answer: Mapping[tuple[str, str], Observation] | Exception = field(default_factory=dict)
    asked: int = 0

    async def observe(self, now: float) -> Mapping[tuple[str, str], Observation]:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return {key: replace(found, time=now) for key, found in self.answer.items()}


@dataclass
class Bench:
    """A world whose operator also tunes."""

    world: World = field(default_factory=World)
    observer: FakeObserver = field(default_factory=FakeObserver)
    woken: list[Key] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def loop(self) -> TuningLoop:
        world = self.world
        return TuningLoop(
            cache=world.cache,
            book=world.book,
            planner=world.planner,
            observer=self.observer,
            events=Events(world.kube, world.clock, "operator-0"),
            metrics=self.metrics,
            clock=world.clock,
            interval=15.0,
            wake=self.woken.append,
        )

    async def start(self, spec: dict[str, Any] = SPEC) -> None:
        self.world.create(spec)
        await self.world.visit()
        self.world.run_pods(2)
        await self.world.visit()

    async def ticks(self, count: int, loop: TuningLoop | None = None) -> None:
        loop = loop or self.loop()
        for _ in range(count):
            self.world.clock.seconds += 15
            await loop.tick()
            await self.world.visit()


async def _tuned(observation: Observation, spec: dict[str, Any] = SPEC, ticks: int = 12) -> Bench:
    bench = Bench()
    bench.observer.answer = {("team", "chat"): observation}
    await bench.start(spec)
    await bench.ticks(ticks)
    return bench


async def test_decisions_reach_the_children_status_and_events() -> None:
    bench = await _tuned(_busy())
    status = bench.world.status()
    applied = [decision for decision in status["decisions"] if decision["applied"]]
    assert applied
    record = bench.world.book.records[KEY].decided
    assert bench.world.deployment()["spec"]["replicas"] == status["desiredReplicas"] > 2
    assert record.replicas == status["desiredReplicas"]
    live = next(item for ref, item in bench.world.kube.objects.items() if ref.kind.name == "ConfigMap")
    assert json.loads(live["data"]["live.json"])["maxInFlight"] == status["liveLimit"]
    told = {item["reason"] for ref, item in bench.world.kube.objects.items() if ref.kind.name == "Event"}
    assert {decision["reason"] for decision in applied} <= told
    assert (bench.world.condition("SLOMet")["status"], bench.world.condition("SLOMet")["reason"]) == (
        "False",
        "SLOMissed",
    )
    assert bench.world.condition("MetricsAvailable")["status"] == "True"
    assert bench.world.condition("TuningActive")["status"] == "True"
    assert status["observed"]["tpotMs"]["p95"] == 120


async def test_replicas_never_exceed_the_bounds() -> None:
    bench = await _tuned(_busy(arrivals_per_s=10_000.0), ticks=30)
    assert bench.world.deployment()["spec"]["replicas"] == 5


async def test_advice_is_written_and_not_carried_out() -> None:
    bench = await _tuned(_busy(), {**SPEC, "tuning": {"mode": "Advise"}})
    decisions = bench.world.status()["decisions"]
    assert decisions
    assert not any(decision["applied"] for decision in decisions)
    assert bench.world.deployment()["spec"]["replicas"] == 2
    assert bench.world.condition("TuningActive")["reason"] == "Advising"


async def test_nothing_is_decided_when_tuning_is_off() -> None:
    bench = await _tuned(_busy(), {**SPEC, "tuning": {"mode": "Off"}})
    assert "decisions" not in bench.world.status()
    assert bench.world.condition("TuningActive")["reason"] == "TuningOff"


async def test_fixed_replicas_are_left_alone() -> None:
    bench = await _tuned(_busy(), {**SPEC, "replicas": 2})
    assert bench.world.deployment()["spec"]["replicas"] == 2


async def test_a_paused_resource_gets_advice_only() -> None:
    bench = Bench()
    bench.observer.answer = {("team", "chat"): _busy()}
    await bench.start()
    pause = {"annotations": {"trimtab.dev/paused": "true"}}
    bench.world.kube.edit(RESOURCE, lambda item: item["metadata"].update(pause))
    await bench.ticks(12)
    assert not any(decision["applied"] for decision in bench.world.status().get("decisions", ()))
    assert bench.world.deployment()["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param({}, "MetricsMissing", id="no series"),
        pytest.param({("team", "chat"): _busy(age_s=600.0)}, "MetricsStale", id="old series"),
        pytest.param({("team", "chat"): _busy(pods_reporting=1)}, "MetricsIncomplete", id="a pod is not seen"),
        pytest.param({("team", "chat"): _busy(arrivals_per_s=-1.0)}, "MetricsContradictory", id="impossible"),
    ],
)
async def test_what_runs_is_held_while_metrics_are_missing_or_wrong(answer: Any, reason: str) -> None:
    bench = await _tuned(_busy())
    before = bench.world.deployment()["spec"]
    decisions = bench.world.status()["decisions"]
    bench.observer.answer = answer
    await bench.ticks(60)
    assert bench.world.deployment()["spec"] == before
    assert [item["message"] for item in bench.world.status()["decisions"]] == [item["message"] for item in decisions]
    for condition in ("MetricsAvailable", "TuningActive"):
        assert bench.world.condition(condition)["reason"] == reason
    assert bench.world.condition("SLOMet")["status"] == "Unknown"


async def test_an_unreachable_prometheus_is_said_and_what_runs_is_held() -> None:
    bench = await _tuned(_busy())
    before = bench.world.deployment()["spec"]
    bench.observer.answer = TelemetryUnavailableError("connection refused")
    loop = bench.loop()
    for _ in range(3):
        with pytest.raises(TelemetryUnavailableError):
            await loop.tick()
        await bench.world.visit()
    assert bench.world.deployment()["spec"] == before
    assert bench.world.condition("MetricsAvailable")["reason"] == "PrometheusUnreachable"
    assert "connection refused" in bench.world.condition("MetricsAvailable")["message"]


async def test_without_prometheus_the_first_status_says_so() -> None:
    bench = Bench()
    bench.world.book.blind = UNSET
    await bench.start()
    assert bench.world.condition("MetricsAvailable")["reason"] == "PrometheusNotConfigured"
    assert bench.world.condition("Ready")["status"] == "True"


async def test_the_same_metrics_again_write_nothing_and_jitter_writes_nothing() -> None:
    calm = _busy(arrivals_per_s=1.0, served_per_s=0.9, in_flight=4.0, queued=0.0, ttft=Percentiles(0.2, 0.3, 0.4))
    calm = replace(calm, tpot=Percentiles(0.02, 0.03, 0.04), tpot_mean=0.02, ttft_mean=0.2)
    bench = await _tuned(calm)
    loop = bench.loop()
    await bench.ticks(4, loop)
    bench.world.kube.calls.clear()
    bench.observer.answer = {("team", "chat"): replace(calm, arrivals_per_s=1.02, in_flight=4.1)}
    await bench.ticks(4, loop)
    assert bench.world.kube.calls == []


async def test_one_question_serves_all_deployments() -> None:
    bench = Bench()
    for index in range(20):
        bench.world.create(SPEC, name=f"chat-{index}")
        await bench.world.visit(Key("team", f"chat-{index}"))
    await bench.loop().tick()
    assert bench.observer.asked == 1
    assert set(bench.woken) == {Key("team", f"chat-{index}") for index in range(20)}


async def test_a_deployment_that_cannot_be_judged_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    for name in ("bad", "good"):
        bench.world.create(SPEC, name=name)
        await bench.world.visit(Key("team", name))
    import trimtab.controller.tuning_loop as module

    real = module.build_objectives

    def broken(spec: Any, *arguments: Any, **options: Any) -> Any:
        if bench.observer.asked == 1 and not bench.woken:
            bench.observer.asked += 1
            raise RuntimeError("cannot be judged")
        return real(spec, *arguments, **options)

    monkeypatch.setattr(module, "build_objectives", broken)
    await bench.loop().tick()
    assert len(bench.woken) == 2
    holds = {str(key): record.hold.reason for key, record in bench.world.book.records.items() if record.hold}
    assert sorted(holds.values()) == ["MetricsMissing", "TunerFailed"]


async def test_a_restarted_operator_goes_on_from_the_last_decisions() -> None:
    bench = await _tuned(_busy())
    before = bench.world.status()
    template = bench.world.deployment()["spec"]
    bench.world.start()
    bench.observer.answer = {}
    await bench.ticks(1)
    after = bench.world.status()
    assert bench.world.deployment()["spec"] == template
    assert after["decisions"] == before["decisions"]
    assert after["liveLimit"] == before["liveLimit"]
    assert isinstance(bench.world.book.records[KEY].decided, Decided)
    assert bench.world.book.records[KEY].decided.replicas == before["desiredReplicas"]


async def test_an_infeasible_spec_is_not_tuned() -> None:
    bench = Bench()
    bench.observer.answer = {("team", "chat"): _busy()}
    await bench.start()
    bench.world.planner.problem = "nothing fits"
    await bench.ticks(6)
    assert "decisions" not in bench.world.status()


async def test_a_measured_speed_is_kept_in_status_across_restarts_and_moves_no_pod() -> None:
    world = World()
    world.planner = CachedPlanner(load_catalogue(), nodes_known=False)  # type: ignore[assignment]
    world.start()
    bench = Bench(world)
    bench.observer.answer = {("team", "chat"): _busy()}
    spec = {
        **SPEC,
        "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
        "hardware": {"gpuProducts": ["NVIDIA-L4"], "gpusPerReplica": 1},
        "quantization": "none",
        "slo": {"tpot": {"p95": "150ms"}},
    }
    await bench.start(spec)
    template = world.deployment()["spec"]["template"]
    await bench.ticks(5)
    assert "calibration" not in world.status()
    await bench.ticks(30)
    measured = world.status()["calibration"]
    assert measured["samples"] >= 20
    assert measured["key"].startswith("tgi/meta-llama/Llama-3.1-8B-Instruct/none/1xL4")
    assert world.deployment()["spec"]["template"] == template
    world.start()
    await world.visit()
    assert world.status()["calibration"] == measured
    assert [found.key for found in world.book.calibrations()] == [measured["key"]]
    assert world.deployment()["spec"]["template"] == template
