"""What a machine lacks is named, with what to do about it, and gives exit code 3."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from devcluster import preflight
from devcluster.paths import ROOT, ClusterError

Usage = namedtuple("Usage", "total used free")


def _refusal(check: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ClusterError) as refused:
        check(*arguments)
    assert refused.value.code == preflight.LACKS
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_another_system_than_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "needs Linux, this is Darwin" in _refusal(preflight.check_machine, False)


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64 machine, this is aarch64" in _refusal(preflight.check_machine, False)


def test_a_plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in _refusal(preflight.check_machine, True)


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 2**30))
    assert "TRIMTAB_CACHE" in _refusal(preflight.check_machine, False)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**30 // 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: sizes[name])
    assert "1.0 GiB of memory" in _refusal(preflight.check_machine, False)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        assert f"port {taken} (etcd)" in _refusal(preflight.check_ports, {"etcd": taken})
    preflight.check_ports({"etcd": taken})


def test_free_ports_are_free_and_different() -> None:
    ports = preflight.free_ports(20)
    assert len(set(ports)) == 20
    preflight.check_ports({str(port): port for port in ports})


def test_missing_packages_without_a_way_to_install_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    wanted = {"some-package": str(tmp_path / "absent"), "another": str(tmp_path)}
    words = _refusal(preflight.install_packages, wanted)
    assert "some-package" in words
    assert "another" not in words


def test_another_kubernetes_on_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "iptables-save"
    program.write_text("#!/bin/sh\necho ':KUBE-SERVICES - [0:0]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "another Kubernetes node" in _refusal(preflight.check_no_other_kubernetes)


def test_the_command_gives_the_code_and_one_line(tmp_path: Path) -> None:
    """Asked for what is not up, it says what to do; nothing is started."""
    environment = {**os.environ, "TRIMTAB_STATE": str(tmp_path)}
    command = [sys.executable, "-m", "devcluster", "kubeconfig"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "devcluster: the local cluster is not up: run `python3 -m devcluster up`\n"
