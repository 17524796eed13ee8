"""Tests and the demo may only touch clusters that are meant for tests."""

import os
from pathlib import Path

from devcluster import build
from devcluster.controlplane import MARKER
from devcluster.paths import ClusterError
from devcluster.shell import run

ENVIRONMENT = "TRIMTAB_TEST_KUBECONFIG"


def named_kubeconfig() -> Path | None:
    """Another cluster, when the user named one for the purpose. The ambient kubeconfig is never looked at."""
    named = os.environ.get(ENVIRONMENT)
    return ensure_test_cluster(Path(named)) if named else None


def ensure_test_cluster(kubeconfig: Path, context: str | None = None) -> Path:
    """The kubeconfig itself, if the cluster of `context` (None: the current one) carries the marker.

    Raises ClusterError (code 3) otherwise.
    """
    if not kubeconfig.exists():
        raise ClusterError(f"{ENVIRONMENT}: there is no file {kubeconfig}", 3)
    chosen = [] if context is None else [f"--context={context}"]
    command: list[str | Path] = [build.kubectl(), f"--kubeconfig={kubeconfig}", *chosen]
    command += ["get", "configmap", MARKER, "-n", "kube-system"]
    if not run([*command, "--ignore-not-found", "-o", "name"]).strip():
        raise ClusterError(
            f"the cluster of {kubeconfig} is not marked as meant for tests: if it is,"
            f" run `kubectl create configmap {MARKER} -n kube-system` on it",
            3,
        )
    return kubeconfig
