"""The Deployment that runs the replicas."""

from collections.abc import Mapping
from typing import Any

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.engines.base import Engine
from trimtab.plan.types import ServingPlan
from trimtab.resources.containers import (
    engine_container,
    sidecar_container,
    startup_seconds,
    termination_grace_seconds,
)
from trimtab.resources.identity import (
    CONFIG_HASH,
    SIDECAR_IMAGE,
    TEMPLATE_HASH,
    Manifest,
    Owner,
    child_name,
    fingerprint,
    metadata,
    pod_labels,
    selector_labels,
)
from trimtab.resources.placement import pod_affinity, pod_tolerations
from trimtab.resources.security import pod_security
from trimtab.resources.volumes import pod_volumes

_PROGRESS_MARGIN = 600


def build_deployment(
    owner: Owner,
    spec: LLMDeploymentSpec,
    plan: ServingPlan,
    engine: Engine,
    replicas: int | None,
    config_hash: str,
    sidecar_image: str,
    running: Manifest | None = None,
) -> Manifest:
    """The Deployment. `running` is the one in the cluster: what it says about the sidecar's image is kept while
    nothing else about the pods changes, so that an upgrade of the operator alone rolls no pod."""
    template_hash = fingerprint(_pod_template(owner, spec, plan, engine, config_hash, ""))
    image = _kept_image(running, template_hash) or sidecar_image
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, annotations={SIDECAR_IMAGE: image, TEMPLATE_HASH: template_hash}, pod_like=True),
        "spec": {
            **({} if replicas is None else {"replicas": replicas}),
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": startup_seconds(plan, engine.container) + _PROGRESS_MARGIN,
            "selector": {"matchLabels": selector_labels(owner)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": _surge(spec.rollout.surge)},
            "template": _pod_template(owner, spec, plan, engine, config_hash, image),
        },
    }


def _kept_image(running: Mapping[str, Any] | None, template_hash: str) -> str | None:
    annotations = ((running or {}).get("metadata") or {}).get("annotations") or {}
    return annotations.get(SIDECAR_IMAGE) if annotations.get(TEMPLATE_HASH) == template_hash else None


def _surge(surge: bool) -> Manifest:
    # Without surge a replica goes before its successor comes: for clusters that have no GPU to spare.
    return {"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1}


def _pod_template(
    owner: Owner, spec: LLMDeploymentSpec, plan: ServingPlan, engine: Engine, config_hash: str, sidecar_image: str
) -> Manifest:
    template = spec.pod_template
    pod: Manifest = {
        "serviceAccountName": child_name(owner),
        "automountServiceAccountToken": False,
        # A Service called `prometheus` would inject PROMETHEUS_PORT=tcp://…, which engines read as their own setting.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": termination_grace_seconds(engine.drain(plan.settings)),
        "securityContext": pod_security(),
        "initContainers": [sidecar_container(spec, sidecar_image)],
        "containers": [engine_container(spec, plan, engine)],
        "volumes": pod_volumes(owner, spec, engine.container),
        "tolerations": pod_tolerations(spec, plan),
    }
    optional: Manifest = {
        "affinity": pod_affinity(spec, plan),
        "nodeSelector": dict(spec.hardware.node_selector),
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "imagePullSecrets": [{"name": name} for name in template.image_pull_secrets],
    }
    pod |= {name: value for name, value in optional.items() if value}
    labels = dict(template.labels) | pod_labels(owner)
    annotations = dict(template.annotations) | {CONFIG_HASH: config_hash}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}
