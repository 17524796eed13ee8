"""The identity of the pods: none that the API server would let do anything."""

from trimtab.resources.identity import Manifest, Owner, metadata


def build_service_account(owner: Owner) -> Manifest:
    """Without a token: neither engine nor sidecar talks to Kubernetes."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(owner),
        "automountServiceAccountToken": False,
    }
