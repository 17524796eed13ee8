"""How many replicas a drain of nodes may take at a time."""

from trimtab.resources.identity import Manifest, Owner, metadata, selector_labels


def build_disruption_budget(owner: Owner) -> Manifest:
    """One at a time, whatever the number of replicas; pods that crash never block a drain."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": selector_labels(owner)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
