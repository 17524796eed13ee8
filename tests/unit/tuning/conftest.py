from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from trimtab.plan.types import SloTargets, StepCoefficients
from trimtab.tuning.decide import decide
from trimtab.tuning.memory import Memory
from trimtab.tuning.steptime import Mix, StepModel, planned_model
from trimtab.tuning.types import Decision, Lever, Objectives, Observation, Percentiles

STEP = StepCoefficients(const_ms=11.0, per_sequence_ms=0.042, per_kv_token_ms=8.3e-5, per_prefill_token_ms=0.054)
MIX = Mix(1024, 256)


@pytest.fixture
def objectives() -> Objectives:
    """An A100 with an 8B model; TTFT p95 of 1 s and TPOT p95 of 60 ms."""
    return Objectives(
        slo=SloTargets(ttft={0.95: 1.0}, tpot={0.95: 0.06}),
        max_replicas=8,
        engine_concurrency=256,
        kv_tokens=448_000,
        step=STEP,
        planned_limit=32,
    )


@dataclass
class World:
    """A deployment in steady state: pods follow orders after a cold start, speed follows the plan times `slow`."""

    objectives: Objectives
    rate: float = 1.0
    slow: float = 1.0
    spread: float = 1.2
    cold_s: float = 120.0
    hit_ratio: float = 0.0
    now: float = 0.0
    ready: int = 1
    wanted: int = 1
    limit: int = 32
    queued: float = 0.0
    memory: Memory = field(default_factory=Memory)
    orders: list[tuple[float, int]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    @property
    def model(self) -> StepModel:
        planned = planned_model(STEP, MIX, 4096)
        return replace(planned, const_s=planned.const_s * self.slow, slope_s=planned.slope_s * self.slow)

    def observe(self) -> Observation:
        engine_rate = self.rate * (1 - self.hit_ratio)
        batch = 0.0
        for _ in range(50):
            batch = min(engine_rate / max(self.ready, 1) * self.model.latency(batch), float(self.limit))
        if self.queued > 0:
            batch = float(self.limit)
        capacity = self.ready * self.model.requests_per_s(max(batch, 0.01))
        served = min(engine_rate + self.queued / self.objectives.tick_s, capacity)
        self.queued = max(self.queued + (engine_rate - served) * self.objectives.tick_s, 0.0)
        wait = self.queued / max(served, 0.01)
        tpot = self.model.tpot(batch)
        return Observation(
            time=self.now,
            age_s=5.0,
            pods_reporting=self.ready,
            replicas_wanted=self.wanted,
            replicas_ready=self.ready,
            replicas_pending=self.wanted - self.ready,
            arrivals_per_s=self.rate,
            served_per_s=served,
            rejected_per_s=0.0,
            errors_per_s=0.0,
            hit_ratio=self.hit_ratio,
            in_flight=batch * self.ready,
            queued=self.queued,
            limit=float(self.limit),
            tokens_in_per_s=served * MIX.input_tokens,
            tokens_out_per_s=served * MIX.output_tokens,
            ttft=Percentiles(0.1 + wait, 0.2 + wait, 0.3 + wait),
            tpot=Percentiles(tpot, tpot * self.spread, tpot * self.spread * 1.1),
            tpot_mean=tpot,
        )

    def tick(self, **changes: Any) -> tuple[Decision, ...]:
        """One tick; `changes` replace fields of the observation."""
        self.now += self.objectives.tick_s
        for due, wanted in list(self.orders):
            if self.now >= due and wanted == self.wanted:
                self.ready = wanted
                self.orders.remove((due, wanted))
        made, self.memory = decide(replace(self.observe(), **changes), self.objectives, self.memory, self.now)
        for decision in made:
            if not decision.apply:
                continue
            if decision.lever is Lever.LIVE_LIMIT:
                self.limit = int(decision.to_value)
            else:
                self.wanted = int(decision.to_value)
                if self.wanted < self.ready:
                    self.ready = self.wanted
                else:
                    self.orders.append((self.now + self.cold_s, self.wanted))
        self.decisions += made
        return made

    def run(self, seconds: float) -> list[Decision]:
        """Ticks for so long; the decisions taken."""
        before = len(self.decisions)
        for _ in range(int(seconds / self.objectives.tick_s)):
            self.tick()
        return self.decisions[before:]


@pytest.fixture
def make_world(objectives: Objectives) -> Callable[..., World]:
    def make(**settings: Any) -> World:
        return World(settings.pop("objectives", objectives), **settings)

    return make
