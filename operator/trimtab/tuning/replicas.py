"""The second lever: how many replicas. Costs money and takes a cold start to act."""

import itertools
import math
from dataclasses import dataclass

from trimtab.tuning.memory import Load, Memory
from trimtab.tuning.steptime import StepModel
from trimtab.tuning.types import Objectives, Observation

HISTORY_S = 6 * 3600.0
DOWN_WINDOW_S = 600.0
DEFAULT_PERCENTILE, MAX_PERCENTILE = 0.95, 0.99
DISPERSION_TICKS = 40
MIN_TICKS = 8
DEFAULT_TTFT_SLACK_S = 2.0
FALLBACK_UTILISATION = 0.7


@dataclass(frozen=True, slots=True)
class ReplicaChoice:
    """A number of replicas and what decided it."""

    replicas: int
    wanted: float
    """Before rounding and bounds."""
    bound_by: str
    """`load`, `backlog`, `min`, `max`, `budget`, `unschedulable`."""
    inputs: dict[str, float]


def need_of(observation: Observation, model: StepModel | None, limit: float | None) -> float | None:
    """Replicas' worth of work that arrives for the engines, at the throughput of a full batch within the SLO."""
    if observation.arrivals_per_s is None:
        return None
    to_engine = observation.arrivals_per_s * (1.0 - (observation.hit_ratio or 0.0))
    if model is not None and limit:
        return to_engine / max(model.requests_per_s(limit), 1e-9)
    if observation.in_flight is None or not limit:
        return None
    return (observation.in_flight + (observation.queued or 0.0)) / (limit * FALLBACK_UTILISATION)


def remember_load(loads: tuple[Load, ...], load: Load) -> tuple[Load, ...]:
    """Add a tick, drop what is too old."""
    return (*(past for past in loads if load.time - HISTORY_S < past.time < load.time), load)


def slack_of(objectives: Objectives) -> float:
    """Seconds that a request may wait for a place before its first token is late."""
    return max(min(objectives.slo.ttft.values(), default=DEFAULT_TTFT_SLACK_S) * 0.5, 0.25)


def dispersion(loads: tuple[Load, ...], work_s: float, tick_s: float) -> float:
    """Variance over mean of the requests in a tick, at least that of Poisson arrivals (1).

    From differences between neighbouring ticks: they cancel slow trends, which the forecast covers.
    """
    recent = [load.need for load in loads[-DISPERSION_TICKS:]]
    mean = sum(recent) / len(recent) if recent else 0.0
    if len(recent) < MIN_TICKS or mean <= 0:
        return 1.0
    squares = sorted((later - earlier) ** 2 for earlier, later in itertools.pairwise(recent))
    # A lasting step of the load is one large difference, not burstiness.
    kept = squares[: max(len(squares) - len(squares) // 10 - 1, 1)]
    variance = sum(kept) / (2 * len(kept))
    return max(variance / (mean * max(work_s, 1e-9)) * tick_s, 1.0)


def with_headroom(need: float, work_s: float, dispersed: float, slack_s: float, percentile: float) -> float:
    """Replicas at which a share `percentile` of the requests waits no longer than the slack.

    Heavy-traffic form of a queue whose work is cleared by n replicas: P(wait > a) ≈ exp(-2 a n (n - need) / (need x
    work x (dispersion + 1))), with `work_s` replica-seconds a request; solved for n.
    """
    bound = math.log(1.0 / (1.0 - percentile)) * need * work_s * (dispersed + 1.0) / (2.0 * slack_s)
    return need / 2.0 + math.sqrt(need * need / 4.0 + bound)


def choose_replicas(
    observation: Observation, objectives: Objectives, memory: Memory, model: StepModel | None, limit: float | None
) -> ReplicaChoice | None:
    """Replicas that should be ordered now; None when the need is unknown."""
    if not memory.loads:
        return None
    now = observation.time
    cold = memory.cold_start_s or objectives.cold_start_s
    need = _smoothed(memory.loads, now, 60.0)
    forecast = need + max(_trend(memory.loads, now), 0.0) * (cold + objectives.tick_s)
    work = 1.0 / max(model.requests_per_s(limit), 1e-9) if model is not None and limit else 0.1
    base = max(forecast, _held(memory.loads, now))
    spread = dispersion(memory.loads, work, objectives.tick_s)
    percentile = min(max(objectives.slo.ttft, default=DEFAULT_PERCENTILE), MAX_PERCENTILE)
    spare = with_headroom(base, work, spread, slack_of(objectives), percentile) - base
    backlog = _backlog(observation, limit, cold)
    wanted = base + spare + backlog
    inputs = {
        "need": need,
        "forecast": forecast,
        "headroom": spare,
        "dispersion": spread,
        "backlog": backlog,
        "coldStartSeconds": cold,
    }
    return bounded(wanted, observation, objectives, inputs, "backlog" if backlog > 0.5 else "load")


def bounded(
    wanted: float, observation: Observation, objectives: Objectives, inputs: dict[str, float], bound_by: str
) -> ReplicaChoice:
    """Round up and keep within bounds, budget and what the nodes can hold."""
    low, high = objectives.replica_bounds()
    replicas = max(math.ceil(wanted - 1e-6), 0)
    if replicas > high:
        replicas, bound_by = high, "max" if high == objectives.max_replicas else "budget"
    if replicas < low:
        replicas, bound_by = low, "min"
    ready, pending = observation.replicas_ready, observation.replicas_pending
    if observation.replicas_unschedulable and ready is not None:
        possible = max(ready + (pending or 0) - observation.replicas_unschedulable, low)
        if replicas > possible:
            replicas, bound_by = possible, "unschedulable"
    return ReplicaChoice(replicas, wanted, bound_by, inputs)


def _smoothed(loads: tuple[Load, ...], now: float, window_s: float) -> float:
    recent = [load.need for load in loads if load.time > now - window_s]
    return sum(recent) / len(recent) if recent else loads[-1].need


def _trend(loads: tuple[Load, ...], now: float) -> float:
    """Slope of the need per second over the last five minutes, halved: trends of load seldom go on in full."""
    recent = [load for load in loads if load.time > now - 300.0]
    if len(recent) < 8:
        return 0.0
    mean_t = sum(load.time for load in recent) / len(recent)
    mean_n = sum(load.need for load in recent) / len(recent)
    spread = sum((load.time - mean_t) ** 2 for load in recent)
    return 0.5 * sum((load.time - mean_t) * (load.need - mean_n) for load in recent) / spread if spread > 0 else 0.0


def _held(loads: tuple[Load, ...], now: float) -> float:
    """Highest one-minute mean of the down window: what was needed lately is kept for a while."""
    window = [load for load in loads if load.time > now - DOWN_WINDOW_S]
    best = 0.0
    for i, load in enumerate(window):
        minute = [other.need for other in window[: i + 1] if other.time > load.time - 60.0]
        best = max(best, sum(minute) / len(minute))
    return best


def _backlog(observation: Observation, limit: float | None, cold_s: float) -> float:
    """Replicas that would clear what already waits within about a cold start."""
    if not observation.queued or not limit:
        return 0.0
    return observation.queued / limit * min(60.0 / cold_s, 1.0)
