"""Stand-ins that make plans without the published step times."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.parameters import count_parameters
from trimtab.catalog.quantization import weight_format
from trimtab.engines.registry import get_engine
from trimtab.plan.candidates import StepTimes
from trimtab.plan.choose import plan
from trimtab.plan.types import GpuPool, PlanRequest, PlanResult, StepCoefficients

CATALOGUE = load_catalogue()


def roofline(model: ModelFacts, quantization: str, gpu: GpuFacts, shards: int) -> StepCoefficients:
    """Step times by bandwidth and compute alone: monotonic in all that matters, and fast."""
    parameters = count_parameters(model)
    size = weight_format(quantization, model.checkpoint).bytes_per_weight
    return StepCoefficients(
        const_ms=1 + parameters.active_linear * size / shards / (0.8e6 * gpu.bandwidth_gb_s),
        per_sequence_ms=0.03,
        per_kv_token_ms=1e-4 / shards,
        per_prefill_token_ms=2 * parameters.active_linear / shards / (0.5e9 * gpu.fp16_tflops),
        estimate=True,
        source="roofline",
    )


def model(name: str) -> ModelFacts:
    found = CATALOGUE.model(name)
    assert found is not None
    return found


def pools(names: Iterable[str], **changes: Any) -> tuple[GpuPool, ...]:
    """Pools of catalogue GPUs, eight to a node."""
    found = []
    for name in names:
        gpu = CATALOGUE.gpu(name)
        assert gpu is not None
        found.append(replace(GpuPool(gpu, 8, gpu.price_per_hour), **changes))
    return tuple(found)


@pytest.fixture
def request_for() -> Callable[..., PlanRequest]:
    """Build a request: request_for(model, gpus…, **fields)."""

    def build(name: str, *gpus: str, **fields: Any) -> PlanRequest:
        return PlanRequest(models=(model(name),), pools=pools(gpus), **fields)

    return build


@pytest.fixture
def planned() -> Callable[[PlanRequest], PlanResult]:
    """Plan with the roofline instead of the published step times."""
    return lambda request: plan(request, get_engine(request.engine), roofline)


@pytest.fixture
def steps() -> StepTimes:
    """The roofline itself."""
    return roofline


ACTIONS = (
    "use ", "lower ", "name ", "allow ", "set ", "restrict ", "only when ", "ask for ", "take ", "the chosen one has",
    "(allowed: ",
)  # fmt: skip


@pytest.fixture
def is_actionable() -> Callable[[str], bool]:
    """Whether a reason names something that a person can do about it."""
    return lambda reason: any(action in reason for action in ACTIONS)
