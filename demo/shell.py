"""Running commands and talking to the local cluster; everything the demo does to the world goes through here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class DemoError(RuntimeError):
    """A step that failed, in words for the person who watches."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"\033[1m▸ {text}\033[0m" if sys.stdout.isatty() else f"> {text}", flush=True)


def run(*command: str, input_text: str | None = None, quiet: bool = False, check: bool = True) -> str:
    """Run a command in the repository root and return its standard output; raises DemoError when it fails."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=input_text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else None,
        check=False,
    )
    if check and done.returncode != 0:
        detail = f"\n{done.stdout}{done.stderr or ''}".rstrip()
        raise DemoError(f"`{' '.join(command)}` ended with {done.returncode}{detail}")
    return done.stdout


def devcluster(*arguments: str) -> str:
    """A command of the local cluster; its progress goes to standard error."""
    return run("python3", "-m", "devcluster", *arguments)


class Cluster:
    """The local cluster, by its own kubeconfig: the ambient one is never used."""

    def __init__(self, kubeconfig: str, kubectl: str, helm: str) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl_path = kubectl
        self.helm_path = helm

    def kubectl(self, *arguments: str, input_text: str | None = None, check: bool = True) -> str:
        """`kubectl` on this cluster."""
        command = (self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *arguments)
        return run(*command, input_text=input_text, quiet=True, check=check)

    def helm(self, *arguments: str) -> str:
        """`helm` on this cluster."""
        return run(self.helm_path, f"--kubeconfig={self.kubeconfig}", *arguments, quiet=True)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """One object, or None when there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        parsed: dict[str, Any] | None = json.loads(text) if text.strip() else None
        return parsed

    def wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` says so; raises DemoError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise DemoError(f"{what} did not happen within {seconds:.0f} s")
            time.sleep(0.5)


def environment_number(name: str, default: float) -> float:
    """A number from the environment; raises DemoError that names the variable when it is none."""
    text = os.environ.get(name, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise DemoError(f"{name} must be a number, got {text!r}") from None
