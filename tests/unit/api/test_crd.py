"""The generated CustomResourceDefinition: in sync with the models, and of the form the API server accepts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.api.crd import generate_crd
from trimtab.cli.crd import crd_yaml

ROOT = Path(__file__).parents[3]
PASSED_ON_AS_THEY_STAND = {"affinity", "volumes", "volumeMounts"}


def _nodes(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from _nodes(child, (*path, name))
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            yield from _nodes(node[inner], (*path, inner))


def _schema() -> dict[str, Any]:
    return generate_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_committed_crd_is_what_the_models_say() -> None:
    assert (ROOT / "crds" / "llmdeployments.trimtab.dev.yaml").read_text() == crd_yaml(), "run `make crd`"


def test_every_node_has_one_type_and_every_field_a_description() -> None:
    undescribed = []
    for path, node in _nodes(_schema()):
        assert isinstance(node.get("type"), str), path
        assert not {"anyOf", "$ref", "$defs", "title"} & set(node), path
        if path and path[-1] not in ("items", "additionalProperties") and not node.get("description"):
            undescribed.append(".".join(path))
    assert undescribed == []


def test_unknown_fields_are_kept_only_where_kubernetes_objects_pass_through() -> None:
    kept = {
        next(part for part in reversed(path) if part != "items")
        for path, node in _nodes(_schema())
        if "x-kubernetes-preserve-unknown-fields" in node
    }
    assert kept == PASSED_ON_AS_THEY_STAND


def test_operators_on_call_find_the_columns_and_the_scale_subresource() -> None:
    version = generate_crd()["spec"]["versions"][0]
    names = [column["name"] for column in version["additionalPrinterColumns"]]
    assert {"Ready", "SLO", "Replicas", "Desired", "Limit", "Quantization", "TTFT-p95-ms"} <= set(names)
    assert version["subresources"]["scale"]["specReplicasPath"] == ".spec.replicas"
    assert generate_crd()["spec"]["names"]["shortNames"] == ["llmd"]


def test_operator_is_a_source_root_and_not_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
