"""A plan made by hand, so that these tests do not depend on what the planner would choose."""

from typing import Any

import pytest

from trimtab.api.resource import parse_spec
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines.base import BatchSettings, EngineSettings
from trimtab.engines.registry import get_engine
from trimtab.plan.types import GpuPool, Option, ServingPlan, StepCoefficients
from trimtab.resources.identity import Owner
from trimtab.resources.render import render

MODEL = ModelFacts(
    id="meta-llama/Llama-3.1-8B-Instruct",
    family="llama",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
    max_position=131072,
    tied_embeddings=False,
    sources=("test",),
)
GPU = GpuFacts(
    id="L4",
    product_labels=("NVIDIA-L4",),
    compute_capability=8.9,
    memory_gib=22.0,
    bandwidth_gb_s=300,
    fp16_tflops=121,
    sources=("test",),
)


def make_plan(
    spec: LLMDeploymentSpec, *, gpus: int = 1, label: str | None = "NVIDIA-L4", gpu: GpuFacts = GPU, **changes: Any
) -> ServingPlan:
    """What the planner could have made of a spec."""
    model_id = spec.model.id or MODEL.id
    if model_id.startswith("pvc://"):
        model_id = "/models/" + model_id.removeprefix("pvc://").partition("/")[2]
    settings = EngineSettings(
        model_id=model_id,
        revision=spec.model.revision,
        gpus_per_replica=gpus,
        max_input_tokens=6144,
        max_total_tokens=8192,
        batching=BatchSettings(max_batch_prefill_tokens=4096, max_concurrent_requests=128),
        extra_args=spec.engine.extra_args,
        env={variable.name: variable.value for variable in spec.engine.env if variable.value is not None},
        secret_env=frozenset(variable.name for variable in spec.engine.env if variable.secret_key_ref is not None),
    )
    launch = get_engine(spec.engine.type.value).launch(settings, MODEL, gpu)
    assert launch.errors == ()
    option = Option(
        model=MODEL.id,
        engine=spec.engine.type.value,
        quantization="none",
        gpu=gpu.id,
        gpus_per_replica=gpus,
        kv_dtype="bfloat16",
        fits=True,
        weights_bytes=16_060_522_496 // gpus,
        overhead_bytes=0,
        kv_tokens=30_000,
        max_batch_at_context=3,
        ttft_ms=400,
        tpot_ms=60,
        requests_per_second=0.5,
        tokens_per_second=130,
        cost_per_million_tokens=1.5,
        launcher_args=launch.args,
        env=launch.env,
    )
    fields: dict[str, Any] = {
        "option": option,
        "model": MODEL,
        "pool": GpuPool(gpu, 4, 0.7, label),
        "settings": settings,
        "max_input_tokens": 6144,
        "max_total_tokens": 8192,
        "kv_tokens": 30_000,
        "max_batch_within_slo": 24,
        "requests_per_second": 0.5,
        "tokens_per_second": 130,
        "step": StepCoefficients(50, 0.1, 0.0001, 0.1),
        "calibration_key": "key",
        "cost_per_hour": 0.7,
        "estimate": True,
    }
    return ServingPlan(**(fields | changes))


def spec_of(**fields: Any) -> LLMDeploymentSpec:
    """A spec with the 8B model and these fields (camelCase)."""
    return parse_spec({"model": {"id": MODEL.id}} | fields)


OWNER = Owner("chat", "team-a", "0a1b2c3d-0000-4000-8000-000000000001")


def rendered(spec: LLMDeploymentSpec, replicas: int = 2, **changes: Any):
    """Manifests by kind."""
    plan = changes.pop("plan", None) or make_plan(spec)
    owner = changes.pop("owner", OWNER)
    manifests = render(owner, spec, plan, replicas, **changes)
    return {manifest["kind"]: manifest for manifest in manifests}


@pytest.fixture
def owner() -> Owner:
    return OWNER
