"""What an observation teaches: request mix, step times, spread, demand, cold start, effects of past decisions."""

from dataclasses import replace

from trimtab.tuning.live_limit import worst_ratio
from trimtab.tuning.memory import Memory
from trimtab.tuning.rehearsal import choose, observe, restart
from trimtab.tuning.replicas import need_of, percentile_of, slack_of
from trimtab.tuning.steptime import Mix, StepModel, add_sample, corrected, planned_model
from trimtab.tuning.types import Effect, Objectives, Observation

MIX_SMOOTHING = 0.2
SPREAD_SMOOTHING = 0.2
MIN_SPREAD, MAX_SPREAD = 1.0, 5.0
MIN_BATCH = 0.5
MIN_COLD_START_S, MAX_COLD_START_S = 2.0, 3600.0
COLD_START_SMOOTHING = 0.4
COLD_START_CHANGE = 0.3
BOOST_UP, BOOST_DOWN, MAX_BOOST = 1.05, 0.998, 2.5
WITHDRAW_S = 900.0
FAILED_SHARE = 0.25
MAX_PENDING = 16


def mix_of(memory: Memory, objectives: Objectives) -> Mix:
    """The mean request as known so far."""
    return Mix(
        memory.input_tokens if memory.input_tokens is not None else objectives.input_tokens,
        memory.output_tokens if memory.output_tokens is not None else objectives.output_tokens,
    )


def model_of(memory: Memory, objectives: Objectives) -> StepModel | None:
    """Step times for the present mix, corrected by measurements; None without a plan."""
    if objectives.step is None:
        return None
    return corrected(planned_model(objectives.step, mix_of(memory, objectives), objectives.prefill_budget), memory.fit)


def learn(observation: Observation, objectives: Objectives, memory: Memory) -> Memory:
    """The memory after this observation, before anything is decided."""
    if memory.first_seen is None:
        memory = replace(memory, first_seen=observation.time)
    memory = _learn_mix(observation, memory)
    memory = _learn_speed(observation, objectives, memory)
    memory = _learn_load(observation, objectives, memory)
    memory = _learn_cold_start(observation, memory)
    return _judge_effects(observation, memory)


def _smooth(old: float | None, new: float, weight: float) -> float:
    return new if old is None else old + weight * (new - old)


def _learn_mix(observation: Observation, memory: Memory) -> Memory:
    served = observation.served_per_s
    if not served:
        return memory
    if observation.tokens_in_per_s:
        tokens = observation.tokens_in_per_s / served
        memory = replace(memory, input_tokens=_smooth(memory.input_tokens, tokens, MIX_SMOOTHING))
    if observation.tokens_out_per_s:
        tokens = observation.tokens_out_per_s / served
        memory = replace(memory, output_tokens=_smooth(memory.output_tokens, tokens, MIX_SMOOTHING))
    return memory


def _learn_speed(observation: Observation, objectives: Objectives, memory: Memory) -> Memory:
    mean = observation.tpot_mean
    if mean is None or mean <= 0:
        return memory
    spread = dict(memory.spread)
    for percentile in objectives.slo.tpot:
        _learn_spread(spread, f"tpot{percentile}", observation.tpot.at(percentile), mean)
    if observation.latency_mean:
        for percentile in objectives.slo.latency:
            measured = observation.latency.at(percentile)
            _learn_spread(spread, f"latency{percentile}", measured, observation.latency_mean)
    memory = replace(memory, spread=spread)
    pods = observation.replicas_ready or observation.pods_reporting
    if objectives.step is None or not pods or observation.in_flight is None:
        return memory
    batch = observation.in_flight / pods
    if batch < MIN_BATCH:
        return memory
    planned = planned_model(objectives.step, mix_of(memory, objectives), objectives.prefill_budget)
    return replace(memory, fit=add_sample(memory.fit, planned, batch, mean))


def _learn_spread(spread: dict[str, float], key: str, measured: float | None, mean: float) -> None:
    if measured is not None and measured > 0:
        ratio = min(max(measured / mean, MIN_SPREAD), MAX_SPREAD)
        spread[key] = _smooth(spread.get(key), ratio, SPREAD_SMOOTHING)


def _learn_load(observation: Observation, objectives: Objectives, memory: Memory) -> Memory:
    limit = memory.limit or observation.limit or objectives.planned_limit
    model = model_of(memory, objectives)
    need = need_of(observation, model, limit)
    if need is None:
        return memory
    cold = memory.cold_start_s or objectives.cold_start_s
    rehearsal = memory.rehearsal
    if rehearsal is None or abs(rehearsal.cold_start_s - cold) > COLD_START_CHANGE * rehearsal.cold_start_s:
        rehearsal = restart(rehearsal, objectives.tick_s, cold, slack_of(objectives, model, limit))
    late = any((worst_ratio(observation, objectives, metric) or 0.0) > 1.0 for metric in ("ttft", "tpot", "latency"))
    boost = _boost(observation, memory.boost, need, late)
    rehearsal, policy = choose(observe(rehearsal, need * boost, late), percentile_of(objectives))
    return replace(memory, rehearsal=rehearsal, policy=policy, boost=boost, load_time=observation.time)


def _boost(observation: Observation, boost: float, need: float, late: bool) -> float:
    """Grows while the objective is broken although the replicas that the model asks for are there.

    The model knows nothing of pods that a Service loads unevenly. A shortage that is still booting is no reason.
    """
    ready = observation.replicas_ready or 0
    if late and not observation.replicas_pending and ready >= need:
        return min(boost * BOOST_UP, MAX_BOOST)
    return max(boost * BOOST_DOWN, 1.0)


def _learn_cold_start(observation: Observation, memory: Memory) -> Memory:
    if not memory.ordered or observation.replicas_ready is None:
        return memory
    waiting = []
    cold = memory.cold_start_s
    for ordered_at, wanted in memory.ordered:
        took = observation.time - ordered_at
        if observation.replicas_ready >= wanted:
            cold = _smooth(cold, min(max(took, MIN_COLD_START_S), MAX_COLD_START_S), COLD_START_SMOOTHING)
        elif took < MAX_COLD_START_S:
            waiting.append((ordered_at, wanted))
    return replace(memory, cold_start_s=cold, ordered=tuple(waiting))


def _judge_effects(observation: Observation, memory: Memory) -> Memory:
    """Compare what was expected with what is; a lever that made things worse rests for a while."""
    due = [pending for pending in memory.pending if observation.time >= pending.expectation.check_at]
    if not due:
        return replace(memory, effects=())
    effects = []
    distrust = dict(memory.distrust)
    for pending in due:
        expected = pending.expectation
        seen = measured(observation, expected.metric)
        if seen is None:
            sentence = f"{expected.metric} was not measured"
        else:
            sentence = f"{expected.metric} is {seen:.3g}, expected at most {expected.value:.3g}"
            if seen > expected.value * (1 + FAILED_SHARE) and pending.lever not in distrust:
                distrust[pending.lever] = observation.time + WITHDRAW_S
                sentence += f": no more of this lever on feedback for {WITHDRAW_S / 60:.0f} minutes"
        effects.append(Effect(pending.decision_id, pending.lever, expected.value, seen, sentence))
    rest = tuple(pending for pending in memory.pending if pending not in due)[-MAX_PENDING:]
    distrust = {lever: until for lever, until in distrust.items() if until > observation.time}
    return replace(memory, effects=tuple(effects), pending=rest, distrust=distrust)


def measured(observation: Observation, metric: str) -> float | None:
    """The value of "ttft p95" and the like, or of "need per replica"; None when not measured."""
    name, _, percentile = metric.partition(" p")
    if percentile:
        found: float | None = getattr(observation, name).at(int(percentile) / 100)
        return found
    if metric == "queued":
        return observation.queued
    return None
