"""A fresh API server (etcd and kube-apiserver) for the whole test session."""

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devcluster import apiserver as instances
from devcluster import build


@dataclass(frozen=True)
class ApiServer:
    """How tests reach the server."""

    kubeconfig: Path
    kubectl_path: Path

    def kubectl(self, *arguments: str, input_text: str | None = None) -> str:
        """Standard output of kubectl; CalledProcessError with `stderr` when it fails."""
        return subprocess.run(
            [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=input_text,
            text=True,
            capture_output=True,
            check=True,
        ).stdout


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServer]:
    """An empty cluster without a node: no controllers, no kubelet, only the API."""
    name = f"t{uuid.uuid4().hex[:6]}"
    try:
        yield ApiServer(instances.up(name).kubeconfig, build.kubectl())
    finally:
        instances.down(name)
