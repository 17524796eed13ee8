"""How fast the engine is: the planner's step times, corrected by what is measured.

The planner's model gives the mean time per output token at a batch of B requests as `const + slope(mix) x B`
(`trimtab.plan.performance.tpot_ms`; the slope holds KV reads and the prefill of the requests that replace finished
ones, so it follows prompt and answer lengths). Two factors correct it, one on the constant, one on the slope. They
are found by ridge regression that pulls them to 1 and to each other and forgets old samples, so a few noisy samples
cannot overturn the plan, a changed machine is learnt within minutes, and batches that never vary still say something.
"""

from dataclasses import dataclass, replace

from trimtab.plan.performance import Workload, tpot_ms
from trimtab.plan.types import Load, StepCoefficients

PRIOR_SAMPLES = 2.0
PRIOR_AGREEMENT = 4.0
"""Both factors are pulled to 1, and more strongly to each other: a machine is mostly slower or faster as a whole."""
FORGETTING = 0.98
"""Weight kept from one sample to the next: about 50 samples, twelve minutes at a tick of 15 s."""
MIN_FACTOR, MAX_FACTOR = 0.2, 8.0
OUTLIER_RATIO = 5.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Mean request that reaches the engine."""

    input_tokens: float
    output_tokens: float

    def workload(self, prefill_budget: int) -> Workload:
        """In the planner's terms."""
        load = Load(max(round(self.input_tokens), 1), max(round(self.output_tokens), 1))
        return Workload(load, prefill_budget, max(load.input_tokens, 1))


@dataclass(frozen=True, slots=True)
class StepFit:
    """Weighted sums of the regression: x1 = planned constant, x2 = planned slope x batch, y = measured, seconds."""

    samples: float = 0.0
    """Weight of the samples; old ones count less."""
    s11: float = 0.0
    s12: float = 0.0
    s22: float = 0.0
    s1y: float = 0.0
    s2y: float = 0.0


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds per output token at a batch: `const_s + slope_s x batch`, for one mix."""

    const_s: float
    slope_s: float
    prefill_s: float
    """Engine time of a mean request's prompt."""
    output_tokens: float

    def tpot(self, batch: float) -> float:
        """Mean time per output token with `batch` requests in the engine."""
        return self.const_s + self.slope_s * batch

    def batch_for(self, tpot_s: float) -> float:
        """Largest batch whose mean time per output token is `tpot_s`; 0 when none is."""
        if tpot_s <= self.const_s:
            return 0.0
        return (tpot_s - self.const_s) / self.slope_s if self.slope_s > 0 else float("inf")

    def latency(self, batch: float) -> float:
        """Engine time of a mean request: prefill and all its tokens."""
        return self.prefill_s + self.output_tokens * self.tpot(batch)

    def requests_per_s(self, batch: float) -> float:
        """Throughput of one replica that always has `batch` requests."""
        return batch / self.latency(batch) if batch > 0 else 0.0


def planned_model(step: StepCoefficients, mix: Mix, prefill_budget: int) -> StepModel:
    """The plan's model for this mix, uncorrected."""
    work = mix.workload(prefill_budget)
    const = tpot_ms(step, work, 0) / 1000.0
    slope = tpot_ms(step, work, 1) / 1000.0 - const
    return StepModel(const, slope, step.prefill_ms(mix.input_tokens) / 1000.0, mix.output_tokens)


def add_sample(fit: StepFit, planned: StepModel, batch: float, tpot_s: float) -> StepFit:
    """Take in one measurement of the mean time per output token; implausible ones are cut to a plausible size."""
    if batch <= 0 or tpot_s <= 0:
        return fit
    expected = corrected(planned, fit).tpot(batch)
    tpot_s = min(max(tpot_s, expected / OUTLIER_RATIO), expected * OUTLIER_RATIO)
    # Relative errors: a sample of 200 ms must not outweigh one of 20 ms.
    scale = planned.tpot(batch)
    x1, x2, y = planned.const_s / scale, planned.slope_s * batch / scale, tpot_s / scale
    keep = FORGETTING
    return replace(
        fit,
        samples=keep * fit.samples + 1,
        s11=keep * fit.s11 + x1 * x1,
        s12=keep * fit.s12 + x1 * x2,
        s22=keep * fit.s22 + x2 * x2,
        s1y=keep * fit.s1y + x1 * y,
        s2y=keep * fit.s2y + x2 * y,
    )


def factors(fit: StepFit) -> tuple[float, float]:
    """(on the constant, on the slope); both 1 without samples."""
    # Penalty: PRIOR_SAMPLES x (mean - 1)^2 + PRIOR_AGREEMENT x (difference)^2.
    common = PRIOR_SAMPLES / 4.0
    a11, a22 = fit.s11 + common + PRIOR_AGREEMENT, fit.s22 + common + PRIOR_AGREEMENT
    a12 = fit.s12 + common - PRIOR_AGREEMENT
    b1, b2 = fit.s1y + 2 * common, fit.s2y + 2 * common
    determinant = a11 * a22 - a12 * a12
    first = (b1 * a22 - b2 * a12) / determinant
    second = (a11 * b2 - a12 * b1) / determinant
    return min(max(first, MIN_FACTOR), MAX_FACTOR), min(max(second, MIN_FACTOR), MAX_FACTOR)


def corrected(planned: StepModel, fit: StepFit) -> StepModel:
    """The plan's model with the measured factors."""
    on_const, on_slope = factors(fit)
    return replace(
        planned,
        const_s=planned.const_s * on_const,
        slope_s=planned.slope_s * on_slope,
        prefill_s=planned.prefill_s * on_slope,
    )
