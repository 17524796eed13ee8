"""Taking the cluster down without a trace: processes, containers, network, mounts, rules, settings, files."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

from devcluster import controlplane
from devcluster.containerd import containerd_socket, ctr
from devcluster.paths import BRIDGE, ClusterError
from devcluster.shell import Processes, find_tool, run, say


def down(folder: Path) -> None:
    """Remove everything that `up` made in `folder` and on the host; does nothing where there is nothing."""
    if not folder.exists():
        say("nothing to take down")
        return
    processes = Processes(folder)
    for name in ("proxy", "kubelet"):
        processes.stop(name)
    controlplane.stop(folder)
    if processes.running("containerd"):
        _remove_containers(folder)
        processes.stop("containerd")
    _end_shims(folder)
    if os.geteuid() == 0:
        _clean_host(folder)
    shutil.rmtree(folder, ignore_errors=True)
    say("down")


def _clean_host(folder: Path) -> None:
    _unmount_below(folder)
    _remove_rules()
    _remove_bridge()
    _remove_cgroups()
    _remove_log_links(folder)
    _remove_empty(Path("/var/lib/kubelet/device-plugins"), Path("/var/lib/kubelet"), Path("/var/log/containers"))
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
    """End container shims that survived: they carry our socket on their command line."""
    address = str(containerd_socket(folder)).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"containerd-shim-runc-v2") and address in words:
            os.kill(int(entry.name), signal.SIGKILL)


def _unmount_below(folder: Path) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    for point in sorted((p for p in points if p.startswith(f"{folder}/")), key=len, reverse=True):
        run(["umount", "-l", point], check=False)


def _remove_rules() -> None:
    """Drop the chains of kube-proxy and kubelet; `up` refused to start beside another node, so they are ours."""
    for family in ("iptables", "ip6tables"):
        saved = run([find_tool(f"{family}-save")], check=False)
        if "KUBE-" in saved:
            kept = "\n".join(line for line in saved.splitlines() if "KUBE-" not in line) + "\n"
            run([find_tool(f"{family}-restore")], input_text=kept, check=False)


def _remove_bridge() -> None:
    ip = find_tool("ip")
    if BRIDGE in run([ip, "-o", "link", "show"]):
        run([ip, "link", "delete", BRIDGE])


def _remove_cgroups() -> None:
    """Remove the kubelet's control groups (every hierarchy on version 1, the only one on version 2)."""
    for top in (*Path("/sys/fs/cgroup").glob("*/kubepods"), Path("/sys/fs/cgroup/kubepods")):
        if not top.exists():
            continue
        groups = [Path(path) for path, _, _ in os.walk(top, topdown=False)]
        for group in groups:
            _remove_group(group)


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


def _remove_log_links(folder: Path) -> None:
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(folder)):
            link.unlink()


def _remove_empty(*folders: Path) -> None:
    """Folders that the kubelet makes at fixed places, unless somebody else uses them."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _restore_sysctls(folder: Path) -> None:
    try:
        values = json.loads((folder / "sysctls.json").read_text())
    except (OSError, ValueError):
        return
    for name, value in values.items():
        Path("/proc/sys", name).write_text(value)
