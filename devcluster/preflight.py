"""What this machine must have, checked before anything is touched."""

import os
import platform
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

from devcluster.paths import PORT_BASE, ClusterError, cache_dir, state_dir
from devcluster.shell import find_tool, run, say

# Debian package → a file that proves it is installed.
PACKAGES: dict[str, str] = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "buildah": "/usr/bin/buildah",
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "iproute2": "/sbin/ip",
    "openssl": "/usr/bin/openssl",
    "conntrack": "/usr/sbin/conntrack",
}
# Bits of /proc/self/status CapEff (linux/capability.h).
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_CHROOT": 18, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}
MIN_FREE_DISK_GIB = 8
MIN_MEMORY_GIB = 6
LACKS = 3


def check_machine(needs_node: bool) -> None:
    """Raise ClusterError (exit code 3) naming what is missing and what to do about it."""
    if platform.system() != "Linux":
        raise ClusterError(f"the local cluster needs Linux, this is {platform.system()}: use a Linux machine", LACKS)
    if platform.machine() != "x86_64":
        raise ClusterError(f"the local cluster needs an x86-64 machine, this is {platform.machine()}", LACKS)
    if needs_node:
        _check_privileges()
    _check_room()


def _check_privileges() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a node with pods needs root: run the command with sudo", LACKS)
    status = Path("/proc/self/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        raise ClusterError(
            f"a node with pods needs {', '.join(missing)}: give the container or shell these capabilities", LACKS
        )


def _check_room() -> None:
    for folder in (cache_dir(), state_dir()):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        if free < MIN_FREE_DISK_GIB:
            raise ClusterError(
                f"{existing} has {free:.1f} GiB free, {MIN_FREE_DISK_GIB} GiB are needed:"
                " free some, or set TRIMTAB_CACHE and TRIMTAB_STATE to other disks",
                LACKS,
            )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if memory < MIN_MEMORY_GIB:
        raise ClusterError(f"this machine has {memory:.1f} GiB of memory, {MIN_MEMORY_GIB} GiB are needed", LACKS)


def check_ports(ports: dict[str, int], address: str = "127.0.0.1") -> None:
    """Raise ClusterError when a foreign process listens on a port that the cluster needs."""
    for what, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                raise ClusterError(
                    f"port {port} ({what}) is taken by another process: end it, or set {PORT_BASE}", LACKS
                ) from None


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on right now."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def check_no_other_kubernetes() -> None:
    """Two kube-proxies would fight over the same chains: refuse to start beside another node."""
    rules = subprocess.run([find_tool("iptables-save")], capture_output=True, text=True, check=False).stdout
    if "KUBE-SERVICES" in rules:
        raise ClusterError(
            "another Kubernetes node runs on this machine (chain KUBE-SERVICES exists): stop it first,"
            " or run `python3 -m devcluster down` if it is an earlier local cluster",
            LACKS,
        )


def install_packages(wanted: dict[str, str] | None = None) -> None:
    """Install the Debian packages that are missing, without starting their services."""
    missing = [package for package, proof in (wanted or PACKAGES).items() if not Path(proof).exists()]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(f"these packages are missing: {' '.join(missing)}. Install them as root", LACKS)
    say(f"installing {' '.join(missing)}")
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        # Debian starts a package's service on installation unless this file says no (101).
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        run(["apt-get", "update", "-qq"])
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=environment)
    finally:
        if ours:
            policy.unlink()
