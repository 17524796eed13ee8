"""The cheapest lever: how many requests each sidecar lets into its engine. Acts within seconds, restarts nothing.

The limit is the largest batch whose predicted time per token (and per request) keeps the objective at its
percentile, that fits the KV cache and that the engine accepts. More would break TPOT for everybody; fewer would leave
requests waiting that the engine could serve.
"""

import math
from dataclasses import dataclass

from trimtab.tuning.memory import Memory
from trimtab.tuning.steptime import Mix, StepModel
from trimtab.tuning.types import Objectives, Observation

MARGIN = 0.95
"""Share of the objective that the model may use up."""
DEAD_BAND = 0.1
MIN_STEP = 2
SETTLE_S = 45.0
"""Between two changes: percentiles need a window to show the last one. Violations do not wait."""
FALLBACK_GROWTH = 1.1
FALLBACK_CUT = 0.75
FALLBACK_ROOM = 0.8
UNBOUNDED = 4096


@dataclass(frozen=True, slots=True)
class LimitChoice:
    """A limit and what decided it."""

    limit: int
    bound_by: str
    """`tpot`, `latency`, `kv`, `engine`, `spec`, `feedback`, `plan`."""
    inputs: dict[str, float]


def choose_limit(
    observation: Observation, objectives: Objectives, memory: Memory, model: StepModel | None, mix: Mix
) -> LimitChoice | None:
    """The limit that should be set now; None when nothing is known to base one on."""
    if model is not None:
        wanted, bound_by, inputs = _by_model(objectives, memory, model, mix)
    else:
        fallback = _by_feedback(observation, objectives, memory)
        if fallback is None:
            return None
        wanted, bound_by, inputs = fallback
    caps = (("engine", objectives.engine_concurrency), ("spec", objectives.max_in_flight))
    for name, cap in caps:
        if cap is not None and wanted > cap:
            wanted, bound_by = float(cap), name
    if wanted < objectives.min_in_flight:
        wanted, bound_by = float(objectives.min_in_flight), "spec"
    return LimitChoice(max(math.floor(wanted + 1e-9), 1), bound_by, inputs)


def _by_model(
    objectives: Objectives, memory: Memory, model: StepModel, mix: Mix
) -> tuple[float, str, dict[str, float]]:
    bounds: list[tuple[float, str]] = []
    inputs = {"stepConstMs": model.const_s * 1000, "stepSlopeMs": model.slope_s * 1000}
    for percentile, target in objectives.slo.tpot.items():
        spread = memory.spread.get(f"tpot{percentile}", 1.0)
        bounds.append((model.batch_for(MARGIN * target / spread), "tpot"))
        inputs["tpotTargetMs"], inputs["tpotSpread"] = target * 1000, spread
    for percentile, target in objectives.slo.latency.items():
        spread = memory.spread.get(f"latency{percentile}", 2.0)
        per_token = (MARGIN * target / spread - model.prefill_s) / max(model.output_tokens, 1.0)
        bounds.append((model.batch_for(per_token), "latency"))
        inputs["latencyTargetMs"] = target * 1000
    if objectives.kv_tokens is not None:
        bounds.append((objectives.kv_tokens / max(mix.input_tokens + mix.output_tokens, 1.0), "kv"))
    wanted, bound_by = min(bounds, default=(float(objectives.planned_limit or UNBOUNDED), "plan"))
    return min(wanted, UNBOUNDED), bound_by, inputs


def _by_feedback(
    observation: Observation, objectives: Objectives, memory: Memory
) -> tuple[float, str, dict[str, float]] | None:
    """Without step times: cut when TPOT is broken, grow slowly while it has room and requests wait."""
    current = memory.limit or observation.limit or objectives.planned_limit
    if current is None:
        return None
    worst = worst_ratio(observation, objectives, "tpot")
    if worst is None:
        return float(current), "plan", {}
    inputs = {"tpotOverTarget": worst}
    if worst > 1.0:
        return max(current * FALLBACK_CUT, 1.0), "feedback", inputs
    if worst < FALLBACK_ROOM and (observation.queued or 0.0) > 0.5:
        return math.ceil(current * FALLBACK_GROWTH), "feedback", inputs
    return float(current), "feedback", inputs


def worst_ratio(observation: Observation, objectives: Objectives, metric: str) -> float | None:
    """Largest measured percentile over its target for "ttft", "tpot" or "latency"; None when not measured."""
    measured = getattr(observation, metric)
    targets = getattr(objectives.slo, metric)
    ratios = [measured.at(p) / target for p, target in targets.items() if measured.at(p) is not None]
    return max(ratios, default=None)


def should_move(choice: LimitChoice, current: float | None, observation: Observation, memory: Memory) -> bool:
    """Whether the change is worth making: beyond the dead band, and settled unless it must be lowered at once."""
    if current is None:
        return True
    change = choice.limit - current
    if abs(change) < max(MIN_STEP, DEAD_BAND * current) and not (current <= MIN_STEP and change):
        return False
    return memory.limit_time is None or observation.time - memory.limit_time >= SETTLE_S
