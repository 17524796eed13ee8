"""Control planes without a node, for tests of the API: several may run at once, each in its own folder."""

import shutil
from pathlib import Path

from devcluster import controlplane, preflight
from devcluster.cleanup import remove_empty
from devcluster.paths import state_dir


def up(name: str = "default", *, controllers: bool = False) -> controlplane.ControlPlane:
    """Start (or find) the API server called `name` on loopback, on ports that were free.

    With `controllers` also the controller manager and the scheduler: Deployments then make pods (which stay Pending),
    and what loses its owner is deleted.
    """
    preflight.check_machine(needs_node=False)
    preflight.install_packages({"openssl": "/usr/bin/openssl"})
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    ports = controlplane.Ports(*preflight.free_ports(3))
    return controlplane.start(folder, "127.0.0.1", ports, controllers=controllers, endpoints=False)


def down(name: str = "default") -> None:
    """End it and remove its folder."""
    folder = _folder(name)
    controlplane.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)
    remove_empty(folder.parent)


def _folder(name: str) -> Path:
    return state_dir() / f"api-{name}"
