"""The Service by which clients reach the sidecars."""

from trimtab.resources.identity import Manifest, Owner, metadata, selector_labels

SERVICE_PORT = 80


def build_service(owner: Owner) -> Manifest:
    """ClusterIP; port 80 leads to the sidecar of a ready pod."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_labels(owner),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }
