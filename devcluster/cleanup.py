"""Taking the cluster down without a trace: processes, containers, network, mounts, rules, settings, files."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

from devcluster import controlplane
from devcluster.containerd import NETWORK, containerd_socket, ctr, serve
from devcluster.paths import BRIDGE, ClusterError, cgroup_root
from devcluster.shell import Processes, find_tool, run, say

# Folders at fixed places that kubelet, containerd and the network plugins make; removed when empty, the deepest first.
_SHARED_FOLDERS = (
    "/var/lib/kubelet/device-plugins",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/lib/cni/results",
    "/var/lib/cni",
    "/run/containerd/s",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd",
    "/run/netns",
)


def down(folder: Path) -> None:
    """Remove everything that `up` made in `folder` and on the host; does nothing where there is nothing."""
    if not folder.exists() and not leftovers(folder):
        say("nothing to take down")
        return
    processes = Processes(folder)
    for name in ("proxy", "kubelet"):
        processes.stop(name)
    controlplane.stop(folder)
    if (folder / "containerd.toml").exists():
        # One that died is needed once more: it alone knows the containers and their network namespaces.
        serve(folder)
        _remove_containers(folder)
        processes.stop("containerd")
    _end_shims(folder)
    _end_contained(folder)
    if os.geteuid() == 0:
        _clean_host(folder)
    shutil.rmtree(folder, ignore_errors=True)
    remove_empty(folder.parent)
    left = leftovers(folder)
    if left:
        raise ClusterError(f"left behind: {'; '.join(left)}")
    say("down")


def leftovers(folder: Path) -> list[str]:
    """What of the cluster in `folder` is still on this machine, in words; empty after a clean `down`."""
    found = [f"folder {folder}"] if folder.exists() else []
    found += [f"mount {point}" for point in _mounts_below(folder)]
    found += [f"container shim {pid}" for pid in _shims(folder)]
    found += [f"control group {group}" for group in _cgroups(folder)]
    if os.geteuid() == 0 and shutil.which("ip"):
        found += [f"link {BRIDGE}"] if _bridge_exists() else []
    return found


def _clean_host(folder: Path) -> None:
    _unmount_below(folder)
    _remove_rules()
    _remove_bridge()
    _remove_cgroups(folder)
    _remove_records(folder)
    _remove_dead_socket(Path(_SHARED_FOLDERS[0], "kubelet.sock"))
    remove_empty(*(Path(path) for path in _SHARED_FOLDERS))
    _restore_sysctls(folder)


def _remove_containers(folder: Path) -> None:
    """End all containers and delete the network namespaces that their sandboxes used."""
    namespaces: set[str] = set()
    for identity in ctr(folder, "containers", "ls", "-q").split():
        try:
            spec = json.loads(ctr(folder, "containers", "info", identity))["Spec"]
            paths = [entry.get("path", "") for entry in spec["linux"]["namespaces"] if entry["type"] == "network"]
            namespaces.update(Path(path).name for path in paths if path.startswith("/var/run/netns/cni-"))
        except (ClusterError, KeyError, TypeError, ValueError):
            pass
        ctr(folder, "tasks", "kill", "-s", "SIGKILL", identity, check=False)
        ctr(folder, "tasks", "delete", "-f", identity, check=False)
        ctr(folder, "containers", "delete", identity, check=False)
    for namespace in namespaces:
        run([find_tool("ip"), "netns", "delete", namespace], check=False)


def _end_shims(folder: Path) -> None:
    """End container shims that survived."""
    for pid in _shims(folder):
        os.kill(pid, signal.SIGKILL)


def _end_contained(folder: Path) -> None:
    """End processes of containers that survived their shims: they are in the cluster's control groups."""
    for top in _cgroups(folder):
        for members in top.rglob("cgroup.procs"):
            for pid in members.read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def _shims(folder: Path) -> list[int]:
    """Container shims of this cluster: they carry its socket on their command line."""
    address = str(containerd_socket(folder)).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"containerd-shim-runc-v2") and address in words:
            found.append(int(entry.name))
    return found


def _unmount_below(folder: Path) -> None:
    for point in sorted(_mounts_below(folder), key=len, reverse=True):
        run(["umount", "-l", point], check=False)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def _remove_rules() -> None:
    """Drop the chains of kube-proxy and kubelet; `up` refused to start beside another node, so they are ours."""
    for family in ("iptables", "ip6tables"):
        commands = removal_of_chains(run([find_tool(f"{family}-save")], check=False))
        if commands:
            run([find_tool(f"{family}-restore"), "--noflush"], input_text=commands, check=False)


def removal_of_chains(saved: str) -> str:
    """Input for `iptables-restore --noflush` that removes Kubernetes' chains and the jumps to them, and nothing else.

    `saved` is the output of `iptables-save`; empty when it holds no such chain.
    """
    result: list[str] = []
    for table in saved.split("COMMIT"):
        lines = [line for line in table.splitlines() if line and not line.startswith("#")]
        chains = [line[1:].split()[0] for line in lines if line.startswith(":KUBE-")]
        if chains:
            # Naming a chain empties it; a jump from elsewhere would keep it from being deleted.
            result += [lines[0], *(f":{chain} - [0:0]" for chain in chains)]
            result += [f"-D{line[2:]}" for line in lines if _jumps_from_elsewhere(line)]
            result += [*(f"-X {chain}" for chain in chains), "COMMIT"]
    return "\n".join(result) + "\n" if result else ""


def _jumps_from_elsewhere(line: str) -> bool:
    return line.startswith("-A ") and not line.startswith("-A KUBE-") and " -j KUBE-" in line


def _remove_bridge() -> None:
    if _bridge_exists():
        run([find_tool("ip"), "link", "delete", BRIDGE])


def _bridge_exists() -> bool:
    return f": {BRIDGE}:" in run([find_tool("ip"), "-o", "link", "show"])


def _cgroups(folder: Path) -> list[Path]:
    """The cluster's topmost control groups (one a hierarchy on version 1, one on version 2)."""
    name = cgroup_root(folder).lstrip("/")
    return [path for path in (*Path("/sys/fs/cgroup").glob(f"*/{name}"), Path("/sys/fs/cgroup", name)) if path.exists()]


def _remove_cgroups(folder: Path) -> None:
    for top in _cgroups(folder):
        for path, _, _ in os.walk(top, topdown=False):
            _remove_group(Path(path))


def _remove_group(group: Path) -> None:
    for _ in range(20):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return


def _remove_records(folder: Path) -> None:
    """Links and records that kubelet and the container network interface keep at fixed places."""
    results = Path("/var/lib/cni/results")
    ours = [record for record in results.glob(f"{NETWORK}-*-eth0") if _network_of(record, folder)]
    for container in {record.name.removeprefix(f"{NETWORK}-").removesuffix("-eth0") for record in ours}:
        for record in results.glob(f"*-{container}-*"):
            record.unlink()
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(folder)):
            link.unlink()


def _network_of(record: Path, folder: Path) -> bool:
    """Whether a result that a network plugin recorded comes from the network of the cluster in `folder`."""
    try:
        return str(folder).encode() in base64.b64decode(json.loads(record.read_text())["config"])
    except (ValueError, KeyError, TypeError):
        return False


def _remove_dead_socket(path: Path) -> None:
    """The kubelet's socket for device plugins has a fixed place and may outlive it; one that answers is another's."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return


def remove_empty(*folders: Path) -> None:
    """Remove those of the folders that are empty: what else is in one is somebody else's."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _restore_sysctls(folder: Path) -> None:
    try:
        values = json.loads((folder / "sysctls.json").read_text())
    except (OSError, ValueError):
        return
    for name, value in values.items():
        Path("/proc/sys", name).write_text(value)
