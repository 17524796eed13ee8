"""Names, labels and ownership of everything that an LLMDeployment becomes."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from trimtab.api import API_VERSION, KIND

Manifest = dict[str, Any]
"""A Kubernetes object as JSON gives it."""

DEPLOYMENT_LABEL = "trimtab.dev/deployment"
MANAGED_BY = "app.kubernetes.io/managed-by"
CONFIG_HASH = "trimtab.dev/config-hash"
"""On pods: fingerprint of the sidecar's static configuration, so that a change of it rolls them."""
TEMPLATE_HASH = "trimtab.dev/template-hash"
"""On the Deployment: fingerprint of the pod template without the sidecar's image."""
SIDECAR_IMAGE = "trimtab.dev/sidecar-image"
"""On the Deployment: the sidecar's image that goes with TEMPLATE_HASH."""

MAX_NAME = 63
"""Longest name that is valid for every kind and as a label value (RFC 1123 label)."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The LLMDeployment that the objects belong to."""

    name: str
    namespace: str
    uid: str | None = None
    """None: not in a cluster yet, then nothing carries an owner reference."""


def fingerprint(value: Any) -> str:
    """Short stable hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shortened(name: str, limit: int = MAX_NAME) -> str:
    """The name itself, or its beginning and a hash of the whole when it is longer than `limit`."""
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: limit - 9].rstrip('-.')}-{digest}"


def child_name(owner: Owner, suffix: str = "") -> str:
    """Name of a child; names of Services may not hold dots."""
    base = owner.name.replace(".", "-")
    plain = f"{base}-{suffix}" if suffix else base
    # A dot becomes a dash: keep `a.b` and `a-b` apart.
    if base != owner.name:
        plain = f"{base}-{hashlib.sha256(owner.name.encode()).hexdigest()[:8]}" + (f"-{suffix}" if suffix else "")
    return shortened(plain)


def common_labels(owner: Owner) -> dict[str, str]:
    """Labels of every object."""
    return {MANAGED_BY: "trimtab", DEPLOYMENT_LABEL: shortened(owner.name)}


def selector_labels(owner: Owner) -> dict[str, str]:
    """Labels by which Service, Deployment and budget find the pods; they never change."""
    return {"app.kubernetes.io/name": "llm-engine", "app.kubernetes.io/instance": shortened(owner.name)}


def pod_labels(owner: Owner) -> dict[str, str]:
    """Labels of the pods."""
    return common_labels(owner) | selector_labels(owner) | {"app.kubernetes.io/component": "engine"}


def metadata(
    owner: Owner, suffix: str = "", annotations: dict[str, str] | None = None, pod_like: bool = False
) -> Manifest:
    """`metadata` of a child."""
    labels = pod_labels(owner) if pod_like else common_labels(owner)
    made: Manifest = {"name": child_name(owner, suffix), "namespace": owner.namespace, "labels": labels}
    if annotations:
        made["annotations"] = annotations
    if owner.uid is not None:
        made["ownerReferences"] = [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return made
