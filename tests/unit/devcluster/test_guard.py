"""No cluster is touched that is not marked as meant for tests, and none that was not named for the purpose."""

from pathlib import Path

import pytest

from devcluster import build, guard
from devcluster.paths import ClusterError


@pytest.fixture
def kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A kubectl that records its arguments and answers what `answer` holds."""
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {tmp_path}/answer\n')
    program.chmod(0o755)
    (tmp_path / "answer").write_text("")
    (tmp_path / "config").write_text("{}")
    monkeypatch.setattr(build, "kubectl", lambda: program)
    return tmp_path


def test_a_cluster_without_the_marker_is_refused(kubectl: Path) -> None:
    with pytest.raises(ClusterError, match="not marked as meant for tests") as refused:
        guard.ensure_test_cluster(kubectl / "config")
    assert refused.value.code == 3


def test_a_marked_cluster_is_taken_by_its_named_context(kubectl: Path) -> None:
    (kubectl / "answer").write_text("configmap/trimtab-test-cluster\n")
    assert guard.ensure_test_cluster(kubectl / "config", "mine") == kubectl / "config"
    calls = (kubectl / "calls").read_text()
    assert f"--kubeconfig={kubectl / 'config'} --context=mine get configmap trimtab-test-cluster" in calls


def test_the_ambient_kubeconfig_is_never_looked_at(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubectl / "config"))
    monkeypatch.delenv(guard.ENVIRONMENT, raising=False)
    assert guard.named_kubeconfig() is None
    assert not (kubectl / "calls").exists()


def test_a_named_cluster_is_checked_too(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.ENVIRONMENT, str(kubectl / "absent"))
    with pytest.raises(ClusterError, match="there is no file"):
        guard.named_kubeconfig()
    monkeypatch.setenv(guard.ENVIRONMENT, str(kubectl / "config"))
    with pytest.raises(ClusterError, match="not marked"):
        guard.named_kubeconfig()
