"""The local cluster for tests with real pods, or another one that was named for tests. What was up before stays up."""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster import build, cleanup, containerd, guard, images
from devcluster import cluster as local

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class Cluster:
    """How tests reach the cluster; `folder` is None for a cluster that was named by the user."""

    kubeconfig: Path
    kubectl_path: Path
    folder: Path | None

    def command(self, *arguments: str) -> list[str]:
        """The words of a kubectl command."""
        return [str(self.kubectl_path), f"--kubeconfig={self.kubeconfig}", *arguments]

    def kubectl(self, *arguments: str, input_text: str | None = None, timeout: float = 180) -> str:
        """Standard output of kubectl; CalledProcessError, with what kubectl said as a note, when it fails."""
        done = subprocess.run(
            self.command(*arguments), input=input_text, text=True, capture_output=True, check=False, timeout=timeout
        )
        try:
            done.check_returncode()
        except subprocess.CalledProcessError as failed:
            failed.add_note(done.stderr)
            raise
        return done.stdout

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Create or change objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.kubectl("apply", "--server-side", "-f", "-", input_text=text)

    def get(self, kind: str, name: str, namespace: str = "default") -> Any:
        """An object, or None when there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, namespace: str, *arguments: str) -> list[dict[str, Any]]:
        """All objects of a kind in a namespace."""
        text = self.kubectl("get", kind, "-n", namespace, "-o", "json", *arguments)
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found

    @staticmethod
    def wait(what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true value of `ready`; fails the test after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := ready()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s; last answer {value!r}"
            time.sleep(0.1)
        return value


@pytest.fixture(scope="session")
def bare_cluster() -> Iterator[Cluster]:
    """The cluster with its node and an image that holds Python and a shell; down after the session unless it was up."""
    named = guard.named_kubeconfig()
    if named is not None:
        yield Cluster(named, build.kubectl(), None)
        return
    was_up = local.folder().exists()
    try:
        plane = local.up()
        containerd.import_archive(plane.folder, images.ADDONS_IMAGE, images.addons_archive())
        yield Cluster(guard.ensure_test_cluster(plane.kubeconfig), build.kubectl(), plane.folder)
    finally:
        if not was_up:
            cleanup.down(local.folder())


@pytest.fixture(scope="session")
def cluster(bare_cluster: Cluster) -> Cluster:
    """The cluster with the project's images as the source stands, Prometheus and Redis."""
    if bare_cluster.folder is not None:
        local.load_images()
        local.start_addons()
    return bare_cluster


@pytest.fixture
def kubectl(bare_cluster: Cluster) -> Callable[..., str]:
    """kubectl on the cluster."""
    return bare_cluster.kubectl


@pytest.fixture
def namespace(bare_cluster: Cluster) -> Iterator[str]:
    """An empty namespace that is deleted afterwards."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    bare_cluster.kubectl("create", "namespace", name)
    # Pods need the default account, which the controller manager creates a moment later.
    bare_cluster.wait("the default service account", lambda: bare_cluster.get("serviceaccount", "default", name))
    yield name
    bare_cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def pod(bare_cluster: Cluster, namespace: str) -> Callable[..., str]:
    """Start a restricted pod with a Python script and give its name; `until` is the condition to wait for, if any.

    `container` holds more fields of its container, `labels` more labels, every other keyword a field of its spec.
    """

    def start(script: str, name: str = "toolbox", until: str | None = "condition=Ready", **spec: Any) -> str:
        container = {
            "name": "main",
            "image": images.ADDONS_IMAGE,
            "imagePullPolicy": "Never",
            "command": ["python3", "-u", "-c", script],
            "securityContext": RESTRICTED,
            **spec.pop("container", {}),
        }
        labels = {"app": name, **spec.pop("labels", {})}
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"containers": [container], "enableServiceLinks": False, **spec},
        }
        bare_cluster.apply(manifest)
        if until is not None:
            bare_cluster.kubectl("wait", f"--for={until}", f"pod/{name}", "-n", namespace, "--timeout=60s")
        return name

    return start
