"""Kubernetes objects as plain manifests: the kinds Trimtab deals with, and what is kept of each in memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.api import GROUP, KIND, PLURAL, VERSION

Manifest = dict[str, Any]
"""An object as JSON gives it. Typed models would drop fields that are newer than the client."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
OWNER_LABEL = "trimtab.dev/deployment"
CHILD_SELECTOR = f"{MANAGED_BY_LABEL}=trimtab"
PAUSED_ANNOTATION = "trimtab.dev/paused"
LIVE_REVISION_ANNOTATION = "trimtab.dev/live-revision"
APPLIED_ANNOTATION = "trimtab.dev/applied"
DECIDED_ANNOTATION = "trimtab.dev/decided"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind and the place of its collection in the API."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apiVersion` of its manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection or of one object."""
        parts = ["apis", self.group] if self.group else ["api"]
        parts.append(self.version)
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(parts)


LLM_DEPLOYMENT = Kind(GROUP, VERSION, KIND, PLURAL)
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
SERVICE = Kind("", "v1", "Service", "services")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT = Kind("", "v1", "ServiceAccount", "serviceaccounts")
CLAIM = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
POD = Kind("", "v1", "Pod", "pods")
NODE = Kind("", "v1", "Node", "nodes", namespaced=False)
EVENT = Kind("events.k8s.io", "v1", "Event", "events")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
AUTOSCALER = Kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")

CHILD_KINDS = (SERVICE_ACCOUNT, CONFIG_MAP, CLAIM, SERVICE, DISRUPTION_BUDGET, DEPLOYMENT)
"""What an LLMDeployment becomes, in the order of application: the Deployment last, when what it mounts exists."""
WATCHED_KINDS = (LLM_DEPLOYMENT, *CHILD_KINDS, POD, NODE)
_BY_NAME = {(kind.api_version, kind.name): kind for kind in (*WATCHED_KINDS, EVENT, LEASE, AUTOSCALER)}


def kind_of(manifest: Mapping[str, Any]) -> Kind:
    """The kind of a manifest; raises KeyError for one that Trimtab does not deal with."""
    return _BY_NAME[manifest["apiVersion"], manifest["kind"]]


@dataclass(frozen=True, slots=True)
class Key:
    """Namespace and name of an LLMDeployment: what the work queue holds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Ref:
    """Address of one object."""

    kind: Kind
    namespace: str | None
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind.name} {place}{self.name}"


def ref_of(manifest: Mapping[str, Any], kind: Kind | None = None) -> Ref:
    """Address of a manifest."""
    kind = kind or kind_of(manifest)
    metadata = manifest["metadata"]
    return Ref(kind, metadata.get("namespace") if kind.namespaced else None, metadata["name"])


def parent_of(kind: Kind, manifest: Mapping[str, Any]) -> Key | None:
    """The LLMDeployment that an object of a watched kind belongs to; None for nodes and strangers."""
    metadata = manifest.get("metadata", {})
    if kind == LLM_DEPLOYMENT:
        return Key(metadata["namespace"], metadata["name"])
    name = (metadata.get("labels") or {}).get(OWNER_LABEL)
    return Key(metadata["namespace"], name) if name and kind.namespaced else None


def owner_uids(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """UIDs of the LLMDeployments that own an object."""
    owners = manifest.get("metadata", {}).get("ownerReferences") or ()
    return tuple(owner["uid"] for owner in owners if owner.get("kind") == KIND)


def resource_version(manifest: Mapping[str, Any]) -> int:
    """Comparable version of an object; 0 when it has none. The API server's versions are decimal numbers."""
    text = str(manifest.get("metadata", {}).get("resourceVersion") or "0")
    return int(text) if text.isdecimal() else 0


def trimmed(kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
    """What is worth remembering of an object: pods and nodes shrink most, there are many of them."""
    kept: Manifest = {"apiVersion": kind.api_version, "kind": kind.name}
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    metadata["annotations"] = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if not key.startswith("kubectl.")
    }
    kept["metadata"] = metadata
    if kind == POD:
        spec = manifest.get("spec") or {}
        kept["spec"] = {key: spec[key] for key in ("nodeName",) if key in spec}
        kept["status"] = manifest.get("status") or {}
        return kept
    if kind == NODE:
        metadata["annotations"] = {}
        spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
        kept["spec"] = {key: spec[key] for key in ("unschedulable", "taints") if key in spec}
        kept["status"] = {key: status[key] for key in ("allocatable", "capacity") if key in status}
        return kept
    if kind == DEPLOYMENT:
        kept["scaledBy"] = list(scaled_by(manifest))
    return kept | {
        key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata", "scaledBy")
    }


def scaled_by(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Field managers that set `spec.replicas` through the scale subresource: autoscalers, and `kubectl scale`."""
    if "scaledBy" in manifest:
        return tuple(manifest["scaledBy"])
    entries: Iterable[Mapping[str, Any]] = manifest.get("metadata", {}).get("managedFields") or ()
    return tuple(
        entry["manager"]
        for entry in entries
        if entry.get("subresource") == "scale" and "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    )
