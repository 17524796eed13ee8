"""From manifests and nodes to the planner's question."""

from typing import Any

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_spec
from trimtab.api.status import Calibration
from trimtab.catalog.catalogue import load_catalogue
from trimtab.plan.from_spec import NodeGpus, calibrations_of, request_from_spec
from trimtab.plan.planner import plan_spec
from trimtab.plan.types import PlanRequest

CATALOGUE = load_catalogue()
QWEN = "Qwen/Qwen2.5-7B-Instruct"


def _request(nodes: list[NodeGpus] | None = None, **spec: Any) -> PlanRequest:
    return request_from_spec(parse_spec({"model": {"id": QWEN}, **spec}), CATALOGUE, nodes)


def test_the_shortest_spec_is_enough() -> None:
    request = _request(slo={"ttft": {"p95": "2s"}, "tpot": {"p50": "40ms", "p99": "80ms"}})
    assert [model.id for model in request.models] == [QWEN]
    assert {pool.gpu.id for pool in request.pools} == {gpu.id for gpu in CATALOGUE.gpus}
    assert request.slo.ttft == {0.95: 2.0}
    assert request.slo.tpot == {0.5: 0.04, 0.99: 0.08}


def test_only_what_the_nodes_have_is_planned_with() -> None:
    nodes = [NodeGpus("NVIDIA-L4", 1), NodeGpus("NVIDIA-L4", 4), NodeGpus("NVIDIA-A100-SXM4-80GB", 8)]
    request = _request(nodes)
    assert [(pool.product_label, pool.gpus_per_node) for pool in request.pools] == [
        ("NVIDIA-A100-SXM4-80GB", 8),
        ("NVIDIA-L4", 4),
    ]
    allowed = _request(nodes, hardware={"gpuProducts": ["L4"], "pricePerGpuHour": {"NVIDIA-L4": 0.33}})
    assert [(pool.gpu.id, pool.price_per_hour) for pool in allowed.pools] == [("L4", 0.33)]


def test_slices_of_a_gpu_are_never_put_together() -> None:
    spec = parse_spec({"model": {"id": "Qwen/Qwen2.5-1.5B-Instruct"}})
    result = plan_spec(spec, CATALOGUE, [NodeGpus("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", 56)])
    assert result.plan is not None
    assert result.plan.option.gpus_per_replica == 1
    assert all("slices" in why.reason for option, why in result.rejected if option.gpus_per_replica > 1)


@pytest.mark.parametrize(
    ("nodes", "spec", "field"),
    [
        ([NodeGpus("NVIDIA-L4", 1)], {"hardware": {"gpuProducts": ["H200"]}}, "spec.hardware.gpuProducts"),
        ([], {}, "spec.hardware.gpuProducts"),
        (None, {"hardware": {"gpuProducts": ["L5"]}}, "spec.hardware.gpuProducts"),
        (None, {"hardware": {"pricePerGpuHour": {"L5": 1}}}, "spec.hardware.pricePerGpuHour"),
        (None, {"model": {"id": "acme/unheard-of"}}, "spec.model.id"),
    ],
)
def test_what_is_unknown_is_named(nodes: list[NodeGpus] | None, spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        _request(nodes, **spec)
    (error,) = refused.value.errors
    assert error.field == field
    assert error.allowed


def test_a_misspelt_model_is_answered_with_those_that_look_alike() -> None:
    with pytest.raises(InvalidSpecError) as refused:
        _request(model={"id": "Qwen/Qwen25-7B-Instruct"})
    assert QWEN in refused.value.errors[0].allowed


def test_gated_models_of_a_size_need_a_token() -> None:
    open_models = _request(model={"size": "large"}).models
    assert open_models
    assert not any(model.gated for model in open_models)
    token = {"name": "hub", "key": "token"}
    with_token = _request(model={"size": "large", "tokenSecretRef": token}).models
    assert any(model.gated for model in with_token)


def test_a_model_on_a_claim_is_known_by_its_folder() -> None:
    request = _request(model={"id": "pvc://weights/models/Qwen2.5-7B-Instruct"})
    assert request.models[0].hidden_size == 3584
    assert request.served_model is not None
    assert request.served_model.endswith("/models/Qwen2.5-7B-Instruct")


def test_fixed_settings_reach_the_engine() -> None:
    spec = parse_spec(
        {
            "model": {"id": QWEN},
            "batching": {"maxBatchSize": 16, "maxBatchPrefillTokens": 2048},
            "context": {"maxInputTokens": 1000, "maxTotalTokens": 2000},
            "engine": {"extraArgs": ["--cuda-memory-fraction=0.5"]},
            "hardware": {"gpuProducts": ["A100-80GB"], "gpusPerReplica": 1},
        }
    )
    half = plan_spec(spec, CATALOGUE).plan
    assert half is not None
    assert half.settings.batching.max_batch_size == 16
    assert (half.max_input_tokens, half.max_total_tokens) == (1000, 2000)
    whole = plan_spec(spec.model_copy(update={"engine": spec.engine.model_copy(update={"extra_args": ()})}), CATALOGUE)
    assert whole.plan is not None
    assert half.kv_tokens < whole.plan.kv_tokens / 2


def test_errors_come_back_instead_of_exceptions() -> None:
    result = plan_spec(parse_spec({"model": {"id": "acme/unheard-of"}}), CATALOGUE)
    assert result.plan is None
    assert not result.options
    assert [error.field for error in result.errors] == ["spec.model.id"]


def test_settings_that_the_engine_would_refuse_are_refused_before() -> None:
    spec = parse_spec({"model": {"id": QWEN}, "engine": {"extraArgs": ["--no-such-flag", "1"]}})
    result = plan_spec(spec, CATALOGUE)
    assert result.plan is None
    assert {error.field for error in result.errors} == {"spec.engine.extraArgs"}


def test_measured_coefficients_come_from_the_status() -> None:
    assert calibrations_of(None) == ()
    measured = {"key": "k", "constMs": 9.5, "perSequenceMs": 0.1, "perKvTokenMs": 0.001, "samples": 40}
    (calibration,) = calibrations_of(Calibration.model_validate(measured))
    assert (calibration.key, calibration.const_ms, calibration.samples) == ("k", 9.5, 40)


def test_a_model_that_only_another_engine_runs_is_answered_with_that_engine() -> None:
    spec = parse_spec({"model": {"id": "openai/gpt-oss-20b"}, "hardware": {"gpuProducts": ["L40S"]}})
    result = plan_spec(spec, CATALOGUE)
    assert result.plan is None
    assert result.options
    assert {error.field: error.allowed.split()[0] for error in result.errors}["spec.engine.type"] == "vllm"
