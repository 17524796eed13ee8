"""Bridge, kubelet and kube-proxy: the one node of the local cluster."""

import contextlib
import json
from pathlib import Path

from devcluster import build, preflight
from devcluster.containerd import containerd_socket
from devcluster.controlplane import ControlPlane
from devcluster.paths import (
    BRIDGE,
    BRIDGE_ADDRESS,
    DNS_ADDRESS,
    NODE,
    POD_CIDR,
    SERVICE_CIDR,
    ClusterError,
    cgroup_root,
    port,
)
from devcluster.shell import find_tool, run, say, wait_for

# What kubelet and kube-proxy change on the host; `down` puts the former values back.
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-iptables",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_KUBELET_PORT, _PROXY_METRICS_PORT, _PROXY_HEALTH_PORT = 3, 4, 5
_CGROUPS = Path("/sys/fs/cgroup")


def create_bridge(folder: Path) -> None:
    """The pods' bridge, whose address is also the node's and the API server's."""
    _remember_sysctls(folder)
    ip = find_tool("ip")
    if BRIDGE in run([ip, "-o", "link", "show"]):
        return
    run([ip, "link", "add", BRIDGE, "type", "bridge"])
    run([ip, "addr", "add", f"{BRIDGE_ADDRESS}/24", "dev", BRIDGE])
    run([ip, "link", "set", BRIDGE, "up"])
    # Without a route of its own, traffic to a Service would need a default route, and without an endpoint leave by it.
    run([ip, "route", "add", SERVICE_CIDR, "dev", BRIDGE])
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        file = Path("/proc/sys") / name
        if file.exists():
            file.write_text("1")


def _remember_sysctls(folder: Path) -> None:
    record = folder / "sysctls.json"
    if not record.exists():
        files = {name: Path("/proc/sys", name) for name in SYSCTLS}
        record.write_text(json.dumps({n: f.read_text().strip() for n, f in files.items() if f.exists()}))


def start_node(plane: ControlPlane) -> None:
    """kubelet and kube-proxy; returns when the node is Ready."""
    folder = plane.folder
    program = build.kube()
    if not plane.processes.running("kubelet"):
        preflight.check_ports({"kubelet": port(_KUBELET_PORT)}, BRIDGE_ADDRESS)
    if not plane.processes.running("proxy"):
        ports = {"kube-proxy metrics": port(_PROXY_METRICS_PORT), "kube-proxy health": port(_PROXY_HEALTH_PORT)}
        preflight.check_ports(ports)
    _create_cgroup_root(folder)
    config = folder / "kubelet.json"
    config.write_text(json.dumps(_kubelet_config(folder), indent=1))
    flags = [
        f"--config={config}",
        f"--kubeconfig={folder / 'kubelet.kubeconfig'}",
        f"--container-runtime-endpoint=unix://{containerd_socket(folder)}",
        f"--node-ip={BRIDGE_ADDRESS}",
        f"--hostname-override={NODE}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'kubelet-pki'}",
    ]
    plane.processes.start("kubelet", [program, "kubelet", *flags])
    proxy = [
        f"--kubeconfig={folder / 'proxy.kubeconfig'}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={POD_CIDR}",
        f"--hostname-override={NODE}",
        # Leave the host's settings alone: 0 and false mean "do not touch".
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--iptables-localhost-nodeports=false",
        f"--healthz-bind-address=127.0.0.1:{port(_PROXY_HEALTH_PORT)}",
        f"--metrics-bind-address=127.0.0.1:{port(_PROXY_METRICS_PORT)}",
    ]
    plane.processes.start("proxy", [program, "proxy", *proxy])
    wait_for("the node", lambda: node_ready(plane), 90, plane.processes.log("kubelet"))
    say("node ready")


def _create_cgroup_root(folder: Path) -> None:
    """The kubelet refuses a parent that does not exist in every hierarchy."""
    unified = (_CGROUPS / "cgroup.controllers").exists()
    for controller in ("cpuset", "cpu", "memory", "pids") if unified else ():
        # A group of version 2 has the controllers that the group above passes on.
        with contextlib.suppress(OSError):
            (_CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    for hierarchy in (_CGROUPS,) if unified else [path for path in _CGROUPS.iterdir() if path.is_dir()]:
        group = hierarchy / cgroup_root(folder).lstrip("/")
        group.mkdir(exist_ok=True)
        # A new group of the version 1 controller `cpuset` may use no processor until told which.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists() and not unified:
                (group / name).write_text((hierarchy / name).read_text())


def node_ready(plane: ControlPlane) -> bool:
    """Whether the API server has the node as Ready."""
    path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    try:
        return plane.kubectl("get", "node", NODE, "-o", path).strip() == "True"
    except ClusterError:
        return False


def _kubelet_config(folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": BRIDGE_ADDRESS,
        "port": port(_KUBELET_PORT),
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(folder / "pki" / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root(folder),
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        "staticPodPath": "",
        "serializeImagePulls": True,
        "nodeStatusUpdateFrequency": "5s",
    }
