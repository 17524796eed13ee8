"""What the tuner learnt about the engine's speed, as coefficients for other plans."""

from dataclasses import replace

import pytest

from trimtab.plan.types import StepCoefficients
from trimtab.tuning.calibrate import MIN_SAMPLES, calibrate, rebase
from trimtab.tuning.memory import Memory
from trimtab.tuning.steptime import Mix, StepFit, add_sample, planned_model

STEP = StepCoefficients(const_ms=11.0, per_sequence_ms=0.042, per_kv_token_ms=8.3e-5, per_prefill_token_ms=0.054)


def _after(samples: int, slow: float) -> Memory:
    """A tuner that measured an engine `slow` times as slow as planned, at batches of 8 to 64."""
    planned = planned_model(STEP, Mix(1024, 256), 4096)
    memory = rebase(Memory(), STEP)
    for number in range(samples):
        batch = 8.0 + number % 57
        memory = replace(memory, fit=add_sample(memory.fit, planned, batch, slow * planned.tpot(batch)))
    return memory


def test_nothing_is_told_before_enough_was_measured() -> None:
    assert calibrate(Memory(), "key", None) is None
    assert calibrate(_after(int(MIN_SAMPLES) - 5, 1.5), "key", None) is None


@pytest.mark.parametrize("slow", [0.6, 1.0, 1.5, 3.0])
def test_a_slower_or_faster_engine_is_told_as_measured(slow: float) -> None:
    found = calibrate(_after(200, slow), "key", None)
    assert found is not None
    assert found.key == "key"
    assert found.const_ms == pytest.approx(slow * STEP.const_ms, rel=0.08)
    assert found.per_sequence_ms == pytest.approx(slow * STEP.per_sequence_ms, rel=0.08)
    assert found.per_kv_token_ms == pytest.approx(slow * STEP.per_kv_token_ms, rel=0.08)
    assert found.per_prefill_token_ms == pytest.approx(slow * STEP.per_prefill_token_ms, rel=0.08)


def test_small_changes_are_not_told_again_and_large_ones_are() -> None:
    known = calibrate(_after(200, 1.5), "key", None)
    assert calibrate(_after(200, 1.52), "key", known) is known
    moved = calibrate(_after(200, 2.0), "key", known)
    assert moved is not None and known is not None and moved.const_ms > known.const_ms
    other = calibrate(_after(200, 1.5), "another key", known)
    assert other is not None and other.key == "another key"


def test_a_fit_is_forgotten_when_the_plan_that_it_corrects_changes() -> None:
    memory = _after(200, 1.5)
    assert rebase(memory, STEP) is memory
    assert rebase(memory, replace(STEP, const_ms=20.0)).fit == StepFit()
