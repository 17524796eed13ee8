"""Where pods may run: the nodes whose GPUs the plan counts on."""

import copy
from typing import Any

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.catalog.gpus import GpuFacts
from trimtab.plan.types import ServingPlan
from trimtab.resources.identity import Manifest

PRODUCT_LABELS = {"nvidia": "nvidia.com/gpu.product", "amd": "amd.com/gpu.product-name"}
"""Node label that names the product: GPU feature discovery, AMD's node labeller. Others have none."""


def product_requirement(plan: ServingPlan) -> Manifest | None:
    """`matchExpressions` entry for the planned product; None when nothing labels it."""
    gpu = plan.pool.gpu
    label = PRODUCT_LABELS.get(gpu.vendor)
    values = _product_values(gpu, plan.pool.product_label)
    if label is None or not values:
        return None
    return {"key": label, "operator": "In", "values": values}


def _product_values(gpu: GpuFacts, seen: str | None) -> list[str]:
    return [seen] if seen is not None else sorted(gpu.product_labels)


def pod_affinity(spec: LLMDeploymentSpec, plan: ServingPlan) -> Manifest | None:
    """The user's affinity with the product added to each of its node selector terms."""
    affinity: dict[str, Any] = copy.deepcopy(dict(spec.pod_template.affinity))
    requirement = product_requirement(plan)
    if requirement is not None:
        node = affinity.setdefault("nodeAffinity", {})
        required = node.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
        terms = required.get("nodeSelectorTerms") or [{}]
        # Terms are alternatives: each must ask for the product.
        required["nodeSelectorTerms"] = [
            {**term, "matchExpressions": [*term.get("matchExpressions", ()), requirement]} for term in terms
        ]
    return affinity or None


def pod_tolerations(spec: LLMDeploymentSpec, plan: ServingPlan) -> list[Manifest]:
    """The user's tolerations, and the taint by which clusters keep other pods off GPU nodes."""
    own = [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in spec.hardware.tolerations]
    usual: Manifest = {"key": plan.pool.gpu.resource, "operator": "Exists", "effect": "NoSchedule"}
    return own if usual in own else [*own, usual]
