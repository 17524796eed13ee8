from collections.abc import Callable

import numpy as np
import pytest

from trimtab.plan.types import SloTargets, StepCoefficients
from trimtab.replay.trace import Source, Trace, from_columns
from trimtab.simulation.compare.fluid import Site, View
from trimtab.tuning.steptime import Mix, planned_model
from trimtab.tuning.types import Objectives

STEP = StepCoefficients(const_ms=11.0, per_sequence_ms=0.042, per_kv_token_ms=8.3e-5, per_prefill_token_ms=0.054)
SLO = SloTargets(ttft={0.99: 2.0}, tpot={0.99: 0.06})


def _trace(rates: list[float], seed: int = 0) -> Trace:
    """Poisson arrivals, one rate a minute; 1024 tokens in, 256 out."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(60 * i + rng.random(rng.poisson(rate * 60)) * 60) for i, rate in enumerate(rates)])
    count = len(times)
    lengths = np.full(count, 1024), np.full(count, 256)
    return from_columns("made", times, *lengths, Source("memory", ""), span_s=60.0 * len(rates))


def _view(**changes: object) -> View:
    """Two ready replicas at half of their limit."""
    values = {
        "time": 600.0,
        "ready": 2,
        "pending": 0,
        "arrivals_per_s": 5.0,
        "arrivals_now_per_s": 5.0,
        "running": 32.0,
        "waiting": 0.0,
        "ttft_p": (0.1, 0.2, 0.3),
        "tpot_p": (0.02, 0.02, 0.02),
        "ttft_mean": 0.1,
        "tpot_mean": 0.02,
        "input_tokens": 1024.0,
        "output_tokens": 256.0,
        "limit": 32,
        "capacity": 4.0,
        "full_tpot": 0.03,
    }
    return View(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def site() -> Site:
    return Site(planned_model(STEP, Mix(1024, 256), 4096), limit=64, cold_start_s=120, drain_s=30)


@pytest.fixture
def objectives() -> Objectives:
    return Objectives(slo=SLO, max_replicas=100, engine_concurrency=64, step=STEP, planned_limit=64)


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    return _trace


@pytest.fixture
def make_view() -> Callable[..., View]:
    return _view


@pytest.fixture
def slo() -> SloTargets:
    return SLO
