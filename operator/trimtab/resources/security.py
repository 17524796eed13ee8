"""Security contexts: the restricted Pod Security Standard, except where the engine's public image needs root."""

from trimtab.engines.base import ContainerFacts
from trimtab.resources.identity import Manifest

SIDECAR_USER = 65532
"""The `nonroot` user of the sidecar's image; also the group that owns volumes."""


def pod_security() -> Manifest:
    """For the whole pod."""
    return {
        "fsGroup": SIDECAR_USER,
        # Weights are large: change owners only when the root of the volume says that it is needed.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def sidecar_security() -> Manifest:
    """Restricted, and with a read-only root file system."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsGroup": SIDECAR_USER,
        "runAsNonRoot": True,
        "runAsUser": SIDECAR_USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def engine_security(facts: ContainerFacts, run_as_non_root: bool) -> Manifest:
    """As restricted as the image allows: baseline with the public image, restricted with one that needs no root."""
    context: Manifest = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": run_as_non_root or not facts.runs_as_root,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if facts.read_only_root:
        context["readOnlyRootFilesystem"] = True
    return context
