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


def ensure_test_cluster(kubeconfig: Path) -> Path:
    """The kubeconfig itself, if its cluster carries the marker; raises ClusterError (code 3) otherwise."""
    if not kubeconfig.exists():
        raise ClusterError(f"{ENVIRONMENT}: there is no file {kubeconfig}", 3)
    command = [build.kubectl(), f"--kubeconfig={kubeconfig}", "get", "configmap", MARKER, "-n", "kube-system"]
    if not run([*command, "--ignore-not-found", "-o", "name"]).strip():
        raise ClusterError(
            f"the cluster of {kubeconfig} is not marked as meant for tests; if it is,"
            f" run `kubectl create configmap {MARKER} -n kube-system` on it",
            3,
        )
    return kubeconfig
