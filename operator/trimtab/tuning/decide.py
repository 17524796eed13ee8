"""One tick for one deployment: observation, objectives and memory in; decisions and the new memory out.

Levers are looked at in the order of their cost: the live limit acts within seconds and costs nothing, replicas cost
money and a cold start. Each decision says which levers it did not take and why, and what it should bring about;
`learn` compares that with what happened.
"""

from dataclasses import replace

from trimtab.tuning.guard import check_hold
from trimtab.tuning.learn import learn, mix_of, model_of
from trimtab.tuning.live_limit import LimitChoice, choose_limit, should_move, worst_ratio
from trimtab.tuning.memory import Memory, Pending
from trimtab.tuning.replicas import ReplicaChoice, backlog_of, bounded, choose_replicas
from trimtab.tuning.steptime import StepModel
from trimtab.tuning.types import Decision, Effect, Expectation, Lever, Objectives, Observation

LIMIT_SHOWS_AFTER_S = 90.0
FEEDBACK_AFTER_S = 60.0
DOWN_WINDOW_S = 600.0
"""Load that must be known before anything is scaled down: also after a restart of the operator."""
SLO_METRICS = ("ttft", "tpot", "latency")


def decide(
    observation: Observation, objectives: Objectives, memory: Memory, now: float
) -> tuple[tuple[Decision, ...], Memory]:
    """Decide for one deployment. Deterministic: equal inputs give equal outputs.

    `now` is the clock time of the decision. With metrics that are missing, stale or contradictory nothing is decided
    and `memory.hold` says why. In Advise mode decisions carry `apply=False`. Effects of earlier decisions that became
    known are in `memory.effects`.
    """
    hold = check_hold(observation, objectives, memory)
    if hold is not None:
        return (), replace(memory, hold=hold, effects=())
    memory = replace(learn(observation, objectives, memory), hold=None)
    model = model_of(memory, objectives)
    decisions: list[Decision] = []
    limit_decision, memory = _decide_limit(observation, objectives, memory, model, now)
    if limit_decision is not None:
        decisions.append(limit_decision)
    replica_decision, memory = _decide_replicas(observation, objectives, memory, model, now)
    if replica_decision is not None:
        decisions.append(replica_decision)
    return tuple(decisions), memory


def current_limit(observation: Observation, objectives: Objectives, memory: Memory) -> int | None:
    """The live limit in force: decided, else reported, else planned."""
    if memory.limit is not None:
        return memory.limit
    return int(observation.limit) if observation.limit is not None else objectives.planned_limit


def _decide_limit(
    observation: Observation, objectives: Objectives, memory: Memory, model: StepModel | None, now: float
) -> tuple[Decision | None, Memory]:
    mix = mix_of(memory, objectives)
    choice = choose_limit(observation, objectives, memory, model, mix)
    reported = memory.limit if memory.limit is not None else observation.limit
    if choice is None or not should_move(choice, reported, observation, memory):
        return None, memory
    violated = worst_ratio(observation, objectives, "tpot")
    reason, sentence = _explain_limit(choice, reported, model, violated, objectives)
    percentile = max(objectives.slo.tpot, default=None)
    expected = None
    if percentile is not None:
        target = objectives.slo.tpot[percentile]
        text = f"TPOT p{percentile * 100:g} at most {target * 1000:.0f} ms"
        expected = Expectation(f"tpot p{percentile * 100:g}", target, now + LIMIT_SHOWS_AFTER_S, text)
    decision = Decision(
        id=f"{Lever.LIVE_LIMIT}-{now:.0f}",
        time=now,
        lever=Lever.LIVE_LIMIT,
        from_value=reported,
        to_value=choice.limit,
        reason=reason,
        sentence=sentence,
        apply=objectives.mode == "Auto",
        inputs={**choice.inputs, **_measured_inputs(observation)},
        rejected=("replicas: a cold start and money; looked at after the limit",),
        expected=expected,
    )
    memory = replace(memory, limit=choice.limit, limit_time=now)
    return decision, _await_effect(memory, decision)


def _explain_limit(
    choice: LimitChoice,
    current: float | None,
    model: StepModel | None,
    violated: float | None,
    objectives: Objectives,
) -> tuple[str, str]:
    grows = current is None or choice.limit > current
    verb = "raised" if grows else "lowered"
    start = f"live limit set to {choice.limit}" if current is None else f"live limit {verb} to {choice.limit}"
    if violated is not None and violated > 1:
        reason = "TpotViolated"
        why = f"TPOT is at {violated:.0%} of its objective"
    elif grows:
        reason, why = "RoomForBatch", "a larger batch still keeps the objective"
    else:
        reason, why = "TpotAtRisk", "the batch would grow beyond the objective"
    if model is not None and choice.bound_by == "tpot":
        why += f": {choice.limit} requests take {model.tpot(choice.limit) * 1000:.1f} ms a token on average"
    bounds = {
        "kv": "; the KV cache holds no more",
        "engine": f"; the engine accepts {objectives.engine_concurrency}",
        "spec": "; tuning.limits bounds it",
        "feedback": "; the plan has no step times, so it goes by measured TPOT",
    }
    return reason, f"{start}: {why}{bounds.get(choice.bound_by, '')}"


def _decide_replicas(
    observation: Observation, objectives: Objectives, memory: Memory, model: StepModel | None, now: float
) -> tuple[Decision | None, Memory]:
    current = _current_replicas(observation, memory)
    if objectives.fixed_replicas is not None or current is None:
        return None, memory
    limit = current_limit(observation, objectives, memory)
    if memory.rehearsal is None or memory.policy is None:
        return None, memory
    backlog = backlog_of(observation, model, limit)
    choice = choose_replicas(observation, objectives, memory.rehearsal, memory.policy, backlog, current)
    if choice is None:
        return None, memory
    choice = _with_feedback(choice, observation, objectives, memory, current)
    if choice.replicas == current or not _may_scale(choice, observation, objectives, memory, current):
        return None, memory
    decision = _replica_decision(choice, current, observation, objectives, memory, limit, now)
    memory = replace(memory, replicas=choice.replicas, scale_time=now)
    if choice.replicas > current:
        memory = replace(memory, scale_up_time=now, ordered=(*memory.ordered, (now, choice.replicas)))
    return decision, _await_effect(memory, decision)


def _current_replicas(observation: Observation, memory: Memory) -> int | None:
    if observation.replicas_wanted is not None:
        return observation.replicas_wanted
    if observation.replicas_ready is None:
        return memory.replicas
    return observation.replicas_ready + (observation.replicas_pending or 0)


def _with_feedback(
    choice: ReplicaChoice, observation: Observation, objectives: Objectives, memory: Memory, current: int
) -> ReplicaChoice:
    """One more than the model asks for where requests wait too long although nothing is on its way."""
    late = worst_ratio(observation, objectives, "ttft")
    waiting = (observation.queued or 0.0) > 0.5
    settled = memory.scale_up_time is None or (
        observation.time - memory.scale_up_time
        > (memory.cold_start_s or objectives.cold_start_s) + observation.window_s + FEEDBACK_AFTER_S
    )
    if late is None or late <= 1 or not waiting or observation.replicas_pending or not settled:
        return choice
    if choice.replicas > current or memory.distrust.get(Lever.REPLICAS, 0.0) > observation.time:
        return choice
    inputs = {**choice.inputs, "ttftOverTarget": late}
    return bounded(float(current + 1), observation, objectives, inputs, "ttft")


def _may_scale(
    choice: ReplicaChoice, observation: Observation, objectives: Objectives, memory: Memory, current: int
) -> bool:
    """Asymmetric: up at once; down only out of a full window of history, with everything ready and the SLO kept."""
    if choice.replicas > current:
        return True
    if current > objectives.replica_bounds()[1]:
        return True
    known = memory.rehearsal
    if known is None or len(known.loads) * known.tick_s < DOWN_WINDOW_S:
        return False
    if observation.replicas_pending:
        return False
    ratios = (worst_ratio(observation, objectives, metric) for metric in SLO_METRICS)
    return not any(ratio is not None and ratio > 1 for ratio in ratios)


def _replica_decision(
    choice: ReplicaChoice,
    current: int,
    observation: Observation,
    objectives: Objectives,
    memory: Memory,
    limit: int | None,
    now: float,
) -> Decision:
    up = choice.replicas > current
    reason, sentence = _explain_replicas(choice, current, observation)
    cold = memory.cold_start_s or objectives.cold_start_s
    expected = None
    if objectives.slo.ttft:
        percentile, target = max(objectives.slo.ttft.items())
        text = f"TTFT p{percentile * 100:g} at most {target * 1000:.0f} ms"
        check = now + (cold if up else 0.0) + observation.window_s + FEEDBACK_AFTER_S
        expected = Expectation(f"ttft p{percentile * 100:g}", target, check, text)
    limit_text = "no limit is known" if limit is None else f"already at {limit}, the most that keeps the objective"
    return Decision(
        id=f"{Lever.REPLICAS}-{now:.0f}",
        time=now,
        lever=Lever.REPLICAS,
        from_value=current,
        to_value=choice.replicas,
        reason=reason,
        sentence=sentence,
        apply=objectives.mode == "Auto",
        inputs={**choice.inputs, **_measured_inputs(observation)},
        rejected=(f"{Lever.LIVE_LIMIT}: {limit_text}",) if up else (),
        expected=expected,
    )


def _explain_replicas(choice: ReplicaChoice, current: int, observation: Observation) -> tuple[str, str]:
    up = choice.replicas > current
    verb = "raised" if up else "lowered"
    need, wanted = choice.inputs.get("need", 0.0), choice.inputs.get("wanted", 0.0)
    start = f"replicas {verb} from {current} to {choice.replicas}"
    arrivals = f"{observation.arrivals_per_s:.2f} requests/s need {need:.2f} replicas"
    bounds = {
        "min": "; scaling.minReplicas bounds it",
        "max": "; scaling.maxReplicas bounds it",
        "budget": "; scaling.maxHourlyCost bounds it",
        "unschedulable": "; no node has room for more",
    }
    tail = bounds.get(choice.bound_by, "")
    if choice.bound_by == "ttft":
        late = choice.inputs.get("ttftOverTarget", 0.0)
        return "TtftViolated", f"{start}: TTFT is at {late:.0%} of its objective and requests wait{tail}"
    if not up:
        hold = choice.inputs.get("holdSeconds", 0.0) / 60.0
        return (
            "LoadFell",
            f"{start}: {arrivals}; with the highest of {hold:.0f} minutes and headroom {wanted:.2f}{tail}",
        )
    if choice.inputs.get("floor", 0.0) >= wanted:
        return "FloorRaised", f"{start}: {arrivals}, but bursts like the last ones need a floor of {wanted:.2f}{tail}"
    reason = "BacklogGrew" if choice.bound_by == "backlog" else "LoadRose"
    waiting = " while requests wait" if choice.bound_by == "backlog" else ""
    return reason, f"{start}: {arrivals}{waiting}, {wanted:.2f} with headroom until more could start{tail}"


def _measured_inputs(observation: Observation) -> dict[str, float]:
    named = {
        "arrivalsPerSecond": observation.arrivals_per_s,
        "hitRatio": observation.hit_ratio,
        "inFlight": observation.in_flight,
        "queued": observation.queued,
        "replicasReady": observation.replicas_ready,
        "ttftP95Ms": None if observation.ttft.p95 is None else observation.ttft.p95 * 1000,
        "tpotP95Ms": None if observation.tpot.p95 is None else observation.tpot.p95 * 1000,
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _await_effect(memory: Memory, decision: Decision) -> Memory:
    if decision.expected is None or not decision.apply:
        return memory
    # The effects of two decisions on one lever cannot be told apart: the later one takes over.
    replaced = tuple(pending for pending in memory.pending if pending.lever == decision.lever)
    rest = tuple(pending for pending in memory.pending if pending.lever != decision.lever)
    sentence = "not checked: a later decision on the same lever took its place"
    gone = tuple(Effect(old.decision_id, old.lever, old.expectation.value, None, sentence) for old in replaced)
    pending = (*rest, Pending(decision.id, decision.lever, decision.expected))
    return replace(memory, pending=pending, effects=(*memory.effects, *gone))
