"""The local cluster for tests with real pods, or another one that was named for tests."""

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


@dataclass(frozen=True)
class Cluster:
    """How tests reach the cluster; `folder` is None for a cluster that was named by the user."""

    kubeconfig: Path
    kubectl_path: Path
    folder: Path | None

    def command(self, *arguments: str) -> list[str]:
        """The words of a kubectl command."""
        return [str(self.kubectl_path), f"--kubeconfig={self.kubeconfig}", *arguments]

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Standard output of kubectl; CalledProcessError, with what kubectl said as a note, when it fails."""
        done = subprocess.run(self.command(*arguments), input=input_text, text=True, capture_output=True, check=False)
        try:
            done.check_returncode()
        except subprocess.CalledProcessError as failed:
            failed.add_note(done.stderr)
            raise
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object or a list, parsed."""
        parsed: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return parsed

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.kubectl("apply", "--server-side", "-f", "-", input_text=text)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster: taken up for this session and down after it, unless it was up before."""
    named = guard.named_kubeconfig()
    if named is not None:
        yield Cluster(named, build.kubectl(), None)
        return
    was_up = local.folder().exists()
    try:
        plane = local.up()
        yield Cluster(guard.ensure_test_cluster(plane.kubeconfig), build.kubectl(), plane.folder)
    finally:
        if not was_up:
            cleanup.down(local.folder())


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """kubectl on the cluster."""
    return cluster.kubectl


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of its own that admits restricted pods only; deleted afterwards."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def tool_image(cluster: Cluster) -> str:
    """An image with a shell and Python, which is in the cluster."""
    assert cluster.folder is not None, "these tests load images: they need the local cluster"
    containerd.import_archive(cluster.folder, images.ADDONS_IMAGE, images.addons_archive())
    return images.ADDONS_IMAGE


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Poll a function until it gives something true, and return that; fails with its last answer."""

    def wait(read: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := read()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s; last answer: {answer!r}")
            time.sleep(0.1)
        return answer

    return wait
