"""etcd, API server, controller manager and scheduler of one cluster."""

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

from devcluster import build, pki, preflight
from devcluster.paths import POD_CIDR, SERVICE_CIDR, ClusterError
from devcluster.shell import Processes, run, say, wait_for

MARKER = "trimtab-test-cluster"


@dataclass(frozen=True)
class Ports:
    """Ports of a control plane, all on one address."""

    etcd: int
    etcd_peer: int
    api: int


@dataclass(frozen=True)
class ControlPlane:
    """A control plane in `folder`: its address and ports are fixed when it is first started."""

    folder: Path
    address: str
    ports: Ports

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.folder / "kubeconfig"

    @property
    def processes(self) -> Processes:
        """What runs here."""
        return Processes(self.folder)

    def kubectl(self, *arguments: str | Path, input_text: str | None = None) -> str:
        """kubectl as administrator; ClusterError with its message when it fails."""
        return run([build.kubectl(), f"--kubeconfig={self.kubeconfig}", *arguments], input_text=input_text)

    def healthy(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            context = ssl.create_default_context(cafile=str(self.folder / "pki" / "ca.crt"))
            token = (self.folder / "pki" / "admin.token").read_text()
            request = urllib.request.Request(f"{self.server}/readyz", headers={"Authorization": f"Bearer {token}"})
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
            )
            with opener.open(request, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def load(folder: Path) -> ControlPlane | None:
    """The control plane recorded in a folder, None when there is none."""
    try:
        record = json.loads((folder / "controlplane.json").read_text())
    except (OSError, ValueError):
        return None
    return ControlPlane(folder, record["address"], Ports(**record["ports"]))


def start(folder: Path, address: str, ports: Ports, *, controllers: bool, endpoints: bool) -> ControlPlane:
    """Start etcd and the API server (and the controllers), or find them running.

    Raises ClusterError when a port is taken by a foreign process or a component does not get ready.
    """
    plane = load(folder) or ControlPlane(folder, address, ports)
    processes = plane.processes
    if not processes.running("apiserver"):
        preflight.check_ports({"API server": plane.ports.api}, plane.address)
    if not processes.running("etcd"):
        preflight.check_ports({"etcd": plane.ports.etcd, "etcd peers": plane.ports.etcd_peer})
    if not (folder / "pki" / "tokens.csv").exists():
        pki.create(folder / "pki", plane.address)
    (folder / "controlplane.json").write_text(json.dumps({"address": address, "ports": asdict(plane.ports)}))
    for identity in pki.IDENTITIES:
        name = folder / (f"{identity}.kubeconfig" if identity != "admin" else "kubeconfig")
        pki.write_kubeconfig(name, folder / "pki", identity, plane.server)
    program = build.kube()
    processes.start("etcd", [program, "etcd", *_etcd_flags(plane)])
    processes.start("apiserver", [program, "apiserver", *_apiserver_flags(plane, endpoints=endpoints)])
    wait_for("the API server", plane.healthy, 90, processes.log("apiserver"))
    if controllers:
        processes.start("controller-manager", [program, "controller-manager", *_controller_flags(plane)])
        processes.start("scheduler", [program, "scheduler", *_scheduler_flags(plane)])
    _mark(plane)
    return plane


def stop(folder: Path) -> None:
    """End the processes of a control plane, the API server before its database."""
    processes = Processes(folder)
    for name in ("scheduler", "controller-manager", "apiserver", "etcd"):
        # An API server waits long for watches to end; nothing that it holds outlives `down`.
        processes.stop(name, grace_seconds=2.0)


def _mark(plane: ControlPlane) -> None:
    """Leave the sign that this cluster is meant for tests; see devcluster.guard."""
    metadata = {"name": MARKER, "namespace": "kube-system"}
    purpose = {"purpose": "meant for tests: what runs here may be changed and deleted at any time"}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": purpose}

    def marked() -> bool:
        try:
            plane.kubectl("apply", "--server-side", "-f", "-", input_text=json.dumps(manifest))
        except ClusterError:
            return False
        return True

    # The namespace kube-system appears a moment after the API server is ready.
    wait_for("the namespace kube-system", marked, 60)
    say(f"API server ready at {plane.server}")


def _etcd_flags(plane: ControlPlane) -> list[str]:
    client, peer = f"http://127.0.0.1:{plane.ports.etcd}", f"http://127.0.0.1:{plane.ports.etcd_peer}"
    return [
        "--name=trimtab",
        f"--data-dir={plane.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=trimtab={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver_flags(plane: ControlPlane, *, endpoints: bool) -> list[str]:
    folder = plane.folder / "pki"
    flags = [
        f"--etcd-servers=http://127.0.0.1:{plane.ports.etcd}",
        f"--bind-address={plane.address}",
        f"--advertise-address={plane.address}",
        f"--secure-port={plane.ports.api}",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--kubelet-client-certificate={folder / 'kubelet-client.crt'}",
        f"--kubelet-client-key={folder / 'kubelet-client.key'}",
        f"--cert-dir={folder}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--service-account-key-file={folder / 'sa.pub'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--profiling=false",
    ]
    if not endpoints:
        # Without a node nobody uses the Service `kubernetes`, and loopback may not be its endpoint.
        flags.append("--endpoint-reconciler-type=none")
    return flags


def _controller_flags(plane: ControlPlane) -> list[str]:
    folder = plane.folder / "pki"
    return [
        f"--kubeconfig={plane.folder / 'controller-manager.kubeconfig'}",
        f"--service-account-private-key-file={folder / 'sa.key'}",
        f"--root-ca-file={folder / 'ca.crt'}",
        f"--cluster-cidr={POD_CIDR}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def _scheduler_flags(plane: ControlPlane) -> list[str]:
    return [f"--kubeconfig={plane.folder / 'scheduler.kubeconfig'}", "--leader-elect=false", "--secure-port=0"]
