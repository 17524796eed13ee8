"""The local cluster with its node, for the whole test session. A cluster that was up before stays up."""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster import build, cleanup
from devcluster import cluster as local
from devcluster.guard import ensure_test_cluster
from devcluster.paths import ClusterError

TOOLBOX = "localhost/trimtab/addons:dev"
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class Cluster:
    """How tests reach the cluster."""

    kubeconfig: Path
    kubectl_path: Path

    def kubectl(self, *arguments: str, input_text: str | None = None, timeout: float = 180) -> str:
        """Standard output of kubectl; CalledProcessError with `stderr` when it fails."""
        return subprocess.run(
            [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=input_text,
            text=True,
            capture_output=True,
            check=True,
            timeout=timeout,
        ).stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Create or change objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "-f", "-", input_text=text)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """An object, or None when there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] | None = json.loads(text) if text.strip() else None
        return found

    def items(self, kind: str, namespace: str, *arguments: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *arguments))[
            "items"
        ]
        return found

    @staticmethod
    def wait(what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true value of `ready`; fails the test after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            value = ready()
            if value:
                return value
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.3)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The local cluster with images, Prometheus and Redis."""
    try:
        local.current()
        was_up = True
    except ClusterError:
        was_up = False
    plane = local.up("NVIDIA-L4", 8, 23034, "8.9")
    try:
        local.load_images()
        local.start_addons()
        yield Cluster(ensure_test_cluster(plane.kubeconfig), build.kubectl())
    finally:
        if not was_up:
            cleanup.down(local.folder())


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """An empty namespace that is deleted afterwards."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    # Pods need the default account, which the controller manager creates a moment later.
    cluster.wait("the default service account", lambda: cluster.get("serviceaccount", "default", name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def pod(cluster: Cluster, namespace: str) -> Callable[..., str]:
    """Start a restricted pod of the toolbox image with a Python script, wait until it runs, return its name."""

    def start(script: str, name: str = "toolbox", **spec: Any) -> str:
        container = {
            "name": "main",
            "image": TOOLBOX,
            "imagePullPolicy": "Never",
            "command": ["python3", "-u", "-c", script],
            "securityContext": RESTRICTED,
            **spec.pop("container", {}),
        }
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {"containers": [container], "enableServiceLinks": False, **spec},
        }
        cluster.apply(manifest)
        cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "-n", namespace, "--timeout=60s")
        return name

    return start
