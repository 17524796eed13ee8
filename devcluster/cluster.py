"""The whole cluster: up, down, images, add-ons, status."""

from pathlib import Path

from devcluster import build, controlplane, gpus, images, node, preflight, volumes
from devcluster.build import locked
from devcluster.containerd import import_archive, start_containerd
from devcluster.controlplane import ControlPlane, Ports
from devcluster.paths import BRIDGE_ADDRESS, ROOT, ClusterError, content_key, port, state_dir
from devcluster.shell import find_tool, say, wait_for

COMPONENTS = ("etcd", "apiserver", "controller-manager", "scheduler", "containerd", "kubelet", "proxy")
MANIFESTS = ROOT / "devcluster" / "manifests"


def folder() -> Path:
    """Where the running cluster lives."""
    return state_dir() / "cluster"


def current() -> ControlPlane:
    """The running cluster; ClusterError when there is none."""
    plane = controlplane.load(folder())
    if plane is None or not plane.processes.running("kubelet"):
        raise ClusterError("the local cluster is not up: run `python3 -m devcluster up`")
    return plane


def up(
    gpu_product: str | None = None,
    gpu_count: int | None = None,
    gpu_memory_mib: int | None = None,
    compute_capability: str | None = None,
) -> ControlPlane:
    """Start what does not run yet; a second call finds everything running.

    What is None about the GPUs stays as it was. ClusterError with code 3 names what this machine lacks.
    """
    preflight.check_machine(needs_node=True)
    preflight.install_packages()
    place = folder()
    offered = gpus.choose(place, gpu_product, gpu_count, gpu_memory_mib, compute_capability)
    with locked("up"):
        plane = controlplane.load(place)
        if plane is None or not _complete(plane):
            if plane is None:
                preflight.check_no_other_kubernetes()
            place.mkdir(parents=True, exist_ok=True)
            archives = {images.COREDNS_IMAGE: images.coredns_archive()}
            build.kubectl()
            build.kube()
            node.create_bridge(place)
            ports = Ports(etcd=port(0), etcd_peer=port(1), api=port(2))
            plane = controlplane.start(place, BRIDGE_ADDRESS, ports, controllers=True, endpoints=True)
            start_containerd(plane)
            for image, archive in archives.items():
                import_archive(place, image, archive)
            node.start_node(plane)
            _start_dns(plane)
        volumes.offer(plane)
        gpus.advertise(plane, offered)
    say(f"up; kubeconfig: {plane.kubeconfig}")
    return plane


def _complete(plane: ControlPlane) -> bool:
    """Whether every part runs: one that died is started again by the next `up`."""
    return all(plane.processes.running(name) for name in COMPONENTS) and plane.healthy() and node.node_ready(plane)


def load_images() -> None:
    """Build the project's images from the source as it stands and import those that changed."""
    plane = current()
    for image, archive in images.project_archives().items():
        import_archive(plane.folder, image, archive)


def start_addons() -> None:
    """Real Prometheus and Redis, as pods; returns when both are ready."""
    plane = current()
    import_archive(plane.folder, images.ADDONS_IMAGE, images.addons_archive())
    for name in ("prometheus", "redis"):
        _apply(plane, name)
    for name in ("prometheus", "redis"):
        plane.kubectl("rollout", "status", f"deployment/{name}", "-n", "monitoring", "--timeout=120s")


def tool(name: str) -> Path:
    """Path of kubectl or helm as the cluster uses them."""
    match name:
        case "kubectl":
            return build.kubectl()
        case "helm":
            return build.helm()
    return Path(find_tool(name))


def status() -> str:
    """One line a process, and whether the API server and the node are ready."""
    plane = current()
    lines = [f"{name}: {'running' if plane.processes.running(name) else 'STOPPED'}" for name in plane.processes.names()]
    lines.append(f"API server: {'ready' if plane.healthy() else 'NOT READY'} at {plane.server}")
    lines.append(f"node: {'Ready' if node.node_ready(plane) else 'NOT READY'}")
    return "\n".join(lines)


def _apply(plane: ControlPlane, name: str) -> None:
    manifest = MANIFESTS / f"{name}.yaml"
    text = manifest.read_text().replace("MANIFEST_KEY", content_key(manifest))
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input_text=text)


def _start_dns(plane: ControlPlane) -> None:
    _apply(plane, "coredns")

    def answered() -> bool:
        ready = "jsonpath={.status.readyReplicas}"
        return plane.kubectl("get", "deployment", "coredns", "-n", "kube-system", "-o", ready).strip() == "1"

    wait_for("cluster DNS", answered, 90)
