"""The spec offline: defaults, and errors that name field, value and what is allowed."""

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_manifest, parse_spec
from trimtab.api.schema import parse_duration, parse_quantity
from trimtab.api.spec import EngineType, Quantization, TuningMode

MINIMAL = {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct"}, "slo": {"ttft": {"p95": "1s"}}}


def test_the_shortest_useful_spec_is_a_model_and_an_objective() -> None:
    spec = parse_spec(MINIMAL)
    assert spec.engine.type is EngineType.TGI
    assert spec.quantization is Quantization.AUTO
    assert (spec.scaling.min_replicas, spec.scaling.max_replicas) == (1, 1)
    assert spec.tuning.mode is TuningMode.AUTO
    assert spec.cache.exact.enabled
    assert spec.slo.ttft.seconds() == {0.95: 1.0}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        pytest.param({"model": None}, "spec.model", "valid", id="no model"),
        pytest.param({"model": {}}, "spec.model.id", "exactly one of id and size", id="neither id nor size"),
        pytest.param({"model": {"id": "a/b", "size": "small"}}, "spec.model.id", "exactly one", id="both id and size"),
        pytest.param({"model": {"id": "a b"}}, "spec.model.id", "pattern", id="blank in the model id"),
        pytest.param(
            {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
            "spec.scaling.minReplicas",
            "must not exceed maxReplicas 2",
            id="minimum above maximum",
        ),
        pytest.param(
            {"slo": {"ttft": {"p50": "3s", "p95": "2s"}}}, "spec.slo.ttft.p50", "longer than p95", id="p50 above p95"
        ),
        pytest.param({"slo": {"ttft": {"p95": "fast"}}}, "spec.slo.ttft.p95", "pattern", id="not a duration"),
        pytest.param({"slo": {"ttft": {"p95": "0s"}}}, "spec.slo.ttft.p95", "pattern", id="zero duration"),
        pytest.param(
            {"context": {"maxInputTokens": 4096, "maxTotalTokens": 4096}},
            "spec.context.maxInputTokens",
            "less than maxTotalTokens",
            id="no room for an answer",
        ),
        pytest.param({"quantization": "q4"}, "spec.quantization", "'awq'", id="unknown quantization"),
        pytest.param({"quantisation": "awq"}, "spec.quantisation", "is not a field", id="misspelt field"),
        pytest.param(
            {"engine": {"image": "ghcr.io/org/image"}}, "spec.engine.image", "pattern", id="image without a tag"
        ),
        pytest.param(
            {"engine": {"env": [{"name": "A"}]}}, "spec.engine.env.0.value", "exactly one", id="variable without value"
        ),
        pytest.param(
            {"tuning": {"limits": {"minInFlight": 9, "maxInFlight": 8}}},
            "spec.tuning.limits.minInFlight",
            "must not exceed maxInFlight 8",
            id="limits out of order",
        ),
    ],
)
def test_a_wrong_spec_names_the_field_and_what_is_wrong(change: dict, field: str, words: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec({**MINIMAL, **change})
    assert [error.field for error in caught.value.errors] == [field]
    assert words in caught.value.errors[0].sentence()


def test_every_error_is_reported_not_only_the_first() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec({**MINIMAL, "quantization": "q4", "scaling": {"minReplicas": 0}})
    assert {error.field for error in caught.value.errors} == {"spec.quantization", "spec.scaling.minReplicas"}


def test_a_manifest_of_another_kind_is_refused() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_manifest({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}})
    assert [error.field for error in caught.value.errors] == ["apiVersion", "kind"]
    with pytest.raises(InvalidSpecError):
        parse_manifest(["not", "a", "mapping"])


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("2s", 2.0), ("0.05s", 0.05), ("1.5m", 90.0), ("1h", 3600.0)]
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert parse_spec({**MINIMAL, "slo": {"ttft": {"p99": text}}}).slo.ttft.seconds() == {0.99: pytest.approx(seconds)}


@pytest.mark.parametrize(
    ("text", "size"), [("256Mi", 256 << 20), ("2G", 2_000_000_000), ("17", 17), ("1.5Gi", 3 << 29)]
)
def test_quantities_are_read_in_bytes(text: str, size: int) -> None:
    assert parse_quantity(text) == size
