"""Generation of the CustomResourceDefinition from the pydantic models."""

from collections.abc import Iterator
from typing import Any, get_args

from trimtab.api import GROUP, KIND, PLURAL, VERSION
from trimtab.api.resource import LLMDeploymentBody
from trimtab.api.schema import ApiModel

_DROPPED = ("title", "examples", "$defs", "additionalProperties")
_COLUMNS: tuple[tuple[str, str, str, str, int], ...] = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether requests are served", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is (not) ready", 0),
    ("SLO", "string", '.status.conditions[?(@.type=="SLOMet")].status', "Whether the objective holds", 0),
    ("Replicas", "integer", ".status.readyReplicas", "Pods that serve", 0),
    ("Desired", "integer", ".status.desiredReplicas", "Pods that are wanted", 0),
    ("Limit", "integer", ".status.liveLimit", "Requests in flight per pod", 0),
    ("Model", "string", ".status.plan.model", "Model that is served", 0),
    ("Quantization", "string", ".status.plan.quantization", "Number format of the weights", 0),
    ("GPU", "string", ".status.plan.gpu", "GPU product", 1),
    ("TTFT-p95-ms", "number", ".status.observed.ttftMs.p95", "Measured time to first token", 1),
    ("TPOT-p95-ms", "number", ".status.observed.tpotMs.p95", "Measured time per output token", 1),
    ("Cost/h", "number", ".status.observed.costPerHour", "Cost of what runs", 1),
    ("Age", "date", ".metadata.creationTimestamp", "", 0),
)


def generate_crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a plain manifest, ready for `kubectl apply`."""
    schema = LLMDeploymentBody.model_json_schema(by_alias=True, mode="validation")
    root = _structural(schema, schema.get("$defs", {}), LLMDeploymentBody)
    root["description"] = "A model served within a service-level objective, at the lowest cost Trimtab finds."
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "trimtab"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["llmd"],
                "categories": ["all", "trimtab"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, description: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def _structural(node: dict[str, Any], definitions: dict[str, Any], model: type[ApiModel] | None) -> dict[str, Any]:
    """A JSON schema node as the structural schema that Kubernetes accepts: inlined, without unions and titles."""
    node, model = _resolved(node, definitions, model)
    if "const" in node:
        node = {"type": "string", "enum": [node["const"]], **{k: v for k, v in node.items() if k != "const"}}
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    _convert_bounds(result)
    if "properties" in node:
        fields = dict(_fields(model))
        result["properties"] = {
            name: _structural(child, definitions, fields.get(name)) for name, child in node["properties"].items()
        }
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions, None)
    if isinstance(node.get("items"), dict):
        result["items"] = _structural(node["items"], definitions, model)
    _convert_default(result)
    if model is not None and model.rules and "properties" in result:
        result["x-kubernetes-validations"] = [
            {"rule": rule.cel, "messageExpression": rule.message, "fieldPath": f".{rule.field}"} for rule in model.rules
        ]
    return result


def _resolved(
    node: dict[str, Any], definitions: dict[str, Any], model: type[ApiModel] | None
) -> tuple[dict[str, Any], type[ApiModel] | None]:
    """Follow references and strip `| None`, keeping what the outer node says (description, default)."""
    while True:
        if "$ref" in node:
            inner = definitions[node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            inner = next(choice for choice in node["anyOf"] if choice.get("type") != "null")
        else:
            return node, model
        outer = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        node = {**inner, **outer}


def _convert_bounds(node: dict[str, Any]) -> None:
    # OpenAPI 3.0, which CRDs use, states exclusive bounds as a flag beside the bound.
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), (int, float)):
            node[bound] = node[exclusive]
            node[exclusive] = True
    node.pop("propertyNames", None)


def _convert_default(node: dict[str, Any]) -> None:
    """Keep scalar defaults; for an object say `{}`, from which the API server fills in the fields' own defaults."""
    if "default" not in node:
        return
    if isinstance(node["default"], dict) and any("default" in child for child in node.get("properties", {}).values()):
        node["default"] = {}
    elif node["default"] in (None, [], {}) or isinstance(node["default"], dict):
        del node["default"]


def _fields(model: type[ApiModel] | None) -> Iterator[tuple[str, type[ApiModel] | None]]:
    if model is None:
        return
    for name, field in model.model_fields.items():
        yield field.alias or name, _model_in(field.annotation)


def _model_in(annotation: Any) -> type[ApiModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return annotation
    for part in get_args(annotation):
        found = _model_in(part)
        if found is not None:
            return found
    return None
