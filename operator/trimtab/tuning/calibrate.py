"""From what the tuner learnt about the engine's speed to coefficients that other plans can use."""

from dataclasses import replace

from trimtab.plan.types import Calibration, StepCoefficients
from trimtab.tuning.memory import Memory
from trimtab.tuning.steptime import StepFit, factors

MIN_SAMPLES = 20.0
"""Weight of the samples from which the fit is told to others: five minutes under load at a tick of 15 s."""
CHANGE = 0.05
"""Smaller changes of a coefficient are not told again: each is a write of status."""


def rebase(memory: Memory, step: StepCoefficients | None) -> Memory:
    """The memory for a plan with these coefficients: a fit corrects only those that it was measured against."""
    if memory.fit_of == step:
        return memory
    return replace(memory, fit=StepFit() if memory.fit_of is not None else memory.fit, fit_of=step)


def calibrate(memory: Memory, key: str, known: Calibration | None) -> Calibration | None:
    """The measured coefficients under `key`, or `known` while nothing new can be said.

    The regression finds one factor for the constant and one for everything that grows with the batch, so the
    coefficients of sequences, KV tokens and prefill keep their planned ratio to each other.
    """
    step, fit = memory.fit_of, memory.fit
    if step is None or fit.samples < MIN_SAMPLES:
        return known
    on_const, on_slope = factors(fit)
    found = Calibration(
        key=key,
        const_ms=_rounded(step.const_ms * on_const),
        per_sequence_ms=_rounded(step.per_sequence_ms * on_slope),
        per_kv_token_ms=_rounded(step.per_kv_token_ms * on_slope),
        per_prefill_token_ms=_rounded(step.per_prefill_token_ms * on_slope),
        samples=int(fit.samples),
    )
    if known is not None and known.key == key and not _moved(known, found):
        return known
    return found


def _moved(known: Calibration, found: Calibration) -> bool:
    pairs = (
        (known.const_ms, found.const_ms),
        (known.per_sequence_ms, found.per_sequence_ms),
        (known.per_kv_token_ms, found.per_kv_token_ms),
        (known.per_prefill_token_ms or 0.0, found.per_prefill_token_ms or 0.0),
    )
    return any(abs(new - old) > CHANGE * abs(old) for old, new in pairs)


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
