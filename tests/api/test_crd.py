"""The CRD on a real API server: accepted, defaulted, and refusing what cannot work in words that tell what to write.

The same wrong specs are refused offline by the pydantic models, so that `trimtab plan` and `kubectl apply` agree.
"""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_spec

pytestmark = pytest.mark.api
CRD = Path(__file__).parents[2] / "crds" / "llmdeployments.trimtab.dev.yaml"
GOOD: dict[str, Any] = {"model": {"id": "org/name"}, "slo": {"ttft": {"p95": "1s"}}}


@pytest.fixture(scope="session")
def installed(apiserver: Any) -> Any:
    """The API server with the CRD established."""
    apiserver.kubectl("apply", "--server-side", "-f", str(CRD))
    apiserver.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.trimtab.dev", "--timeout=60s")
    return apiserver


def _apply(server: Any, spec: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    manifest = {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name or f"t-{uuid.uuid4().hex[:8]}", "namespace": "default"},
        "spec": spec,
    }
    text = server.kubectl("apply", "--server-side", "-o", "json", "-f", "-", input_text=json.dumps(manifest))
    applied: dict[str, Any] = json.loads(text)
    return applied


WRONG = [
    pytest.param({"model": {}}, "spec.model.id", "small, medium or large", id="neither id nor size"),
    pytest.param({"model": {"id": "a/b", "size": "small"}}, "spec.model.id", "either id (a/b) or size", id="both"),
    pytest.param({"model": {"id": "a b"}}, "spec.model.id", "a b", id="blank in the model id"),
    pytest.param(
        {"scaling": {"minReplicas": 3}},
        "spec.scaling.minReplicas",
        "minReplicas 3 must not exceed",
        id="replica bounds",
    ),
    pytest.param(
        {"slo": {"ttft": {"p50": "3s", "p95": "2s"}}},
        "spec.slo.ttft.p50",
        "p50 3s must not be longer than p95 2s",
        id="percentiles out of order",
    ),
    pytest.param({"slo": {"tpot": {"p95": "0s"}}}, "spec.slo.tpot.p95", "0s", id="zero duration"),
    pytest.param({"slo": {"tpot": {"p95": "fast"}}}, "spec.slo.tpot.p95", "fast", id="not a duration"),
    pytest.param(
        {"context": {"maxInputTokens": 512, "maxTotalTokens": 512}},
        "spec.context.maxInputTokens",
        "maxInputTokens 512 must be less than maxTotalTokens 512",
        id="no room for an answer",
    ),
    pytest.param({"quantization": "q4"}, "spec.quantization", '"bitsandbytes-nf4"', id="unknown quantization"),
    pytest.param(
        {"engine": {"env": [{"name": "A"}]}},
        "spec.engine.env[0].value",
        "variable A needs exactly one",
        id="empty variable",
    ),
    pytest.param({"engine": {"image": "org/image"}}, "spec.engine.image", "org/image", id="image without a tag"),
    pytest.param(
        {"tuning": {"limits": {"minInFlight": 9, "maxInFlight": 8}}},
        "spec.tuning.limits.minInFlight",
        "minInFlight 9 must not exceed maxInFlight 8",
        id="limits out of order",
    ),
    pytest.param(
        {"model": {"id": "a/b", "cache": {"existingClaim": "c", "size": "1Gi"}}},
        "spec.model.cache.existingClaim",
        "existingClaim c excludes size",
        id="two kinds of cache",
    ),
]


@pytest.mark.parametrize(("change", "field", "words"), WRONG)
def test_a_wrong_spec_is_refused_with_field_and_value(installed: Any, change: dict, field: str, words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        _apply(installed, {**GOOD, **change})
    assert field in refused.value.stderr
    assert words in refused.value.stderr


@pytest.mark.parametrize(("change", "field", "words"), WRONG)
def test_the_models_refuse_offline_what_the_api_server_refuses(change: dict, field: str, words: str) -> None:
    with pytest.raises(InvalidSpecError) as refused:
        parse_spec({**GOOD, **change})
    assert refused.value.errors[0].field.replace(".0.", "[0].") == field


def test_an_unknown_field_is_refused_not_dropped(installed: Any) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        _apply(installed, {**GOOD, "quantisation": "awq"})
    assert "quantisation" in refused.value.stderr


def test_defaults_are_filled_in_as_the_models_have_them(installed: Any) -> None:
    stored = _apply(installed, GOOD)["spec"]
    assert stored["scaling"] == {"minReplicas": 1, "maxReplicas": 1}
    assert stored["tuning"] == {"mode": "Auto", "limits": {"minInFlight": 1}}
    assert parse_spec(stored) == parse_spec(GOOD)


def test_what_is_stored_survives_a_round_trip_unpruned(installed: Any) -> None:
    spec = {
        **GOOD,
        "podTemplate": {"affinity": {"nodeAffinity": {"x": 1}}, "volumes": [{"name": "v", "emptyDir": {}}]},
        "hardware": {"pricePerGpuHour": {"NVIDIA-L4": 0.7}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    }
    stored = _apply(installed, spec)["spec"]
    assert stored["podTemplate"]["affinity"] == {"nodeAffinity": {"x": 1}}
    assert stored["podTemplate"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    assert stored["hardware"] == spec["hardware"]


def test_kubectl_scale_sets_the_replicas(installed: Any) -> None:
    name = _apply(installed, GOOD)["metadata"]["name"]
    installed.kubectl("scale", "llmd", name, "--replicas=3", "-n", "default")
    assert installed.kubectl("get", "llmd", name, "-n", "default", "-o", "jsonpath={.spec.replicas}") == "3"
