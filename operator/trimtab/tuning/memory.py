"""What the tuner remembers of one deployment between ticks. Opaque to the controller, which only keeps it.

It lives in the operator's process: after a restart the tuner starts from the plan and from the arrivals that
telemetry reads back from Prometheus, and holds what runs until it has seen enough.
"""

from dataclasses import dataclass, field

from trimtab.plan.types import StepCoefficients
from trimtab.tuning.rehearsal import Policy, Rehearsal
from trimtab.tuning.steptime import StepFit
from trimtab.tuning.types import Effect, Expectation, Hold, Lever


@dataclass(frozen=True, slots=True)
class Pending:
    """A decision whose effect is not known yet."""

    decision_id: str
    lever: Lever
    expectation: Expectation


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything that outlives a tick."""

    fit: StepFit = field(default_factory=StepFit)
    fit_of: StepCoefficients | None = None
    """The coefficients that `fit` corrects."""
    input_tokens: float | None = None
    """Smoothed prompt length of requests that reach the engines."""
    output_tokens: float | None = None
    spread: dict[str, float] = field(default_factory=dict)
    """Smoothed percentile over mean, for "tpot" and "latency", at the objective's percentile."""
    rehearsal: Rehearsal | None = None
    """Load history and how candidate policies would have done on it."""
    policy: Policy | None = None
    """The policy in force."""
    boost: float = 1.0
    """Learned factor on the need: what pods that are not evenly loaded need beyond the model."""
    load_time: float | None = None
    """When the load was last taken in."""
    limit: int | None = None
    """Live limit last decided."""
    limit_time: float | None = None
    replicas: int | None = None
    """Replicas last decided."""
    scale_time: float | None = None
    scale_up_time: float | None = None
    cold_start_s: float | None = None
    """Measured time from an order to ready pods, smoothed."""
    ordered: tuple[tuple[float, int], ...] = ()
    """Orders not yet seen ready: (time, replicas wanted)."""
    pending: tuple[Pending, ...] = ()
    effects: tuple[Effect, ...] = ()
    """Effects that became known at the last tick: the controller writes them into the decisions' status."""
    distrust: dict[str, float] = field(default_factory=dict)
    """Lever → clock time until which it rests because it did not do what was expected."""
    hold: Hold | None = None
    """Why nothing was decided at the last tick; None when the tuner is in action."""
    first_seen: float | None = None
