"""containerd with its own root, state and socket, so that nothing else on the machine is touched."""

import json
from pathlib import Path

from devcluster.controlplane import ControlPlane
from devcluster.images import PAUSE_IMAGE, pause_archive
from devcluster.paths import BRIDGE, BRIDGE_ADDRESS, POD_CIDR, ClusterError, content_key
from devcluster.shell import Processes, find_tool, run, wait_for

NETWORK = "trimtab"


def containerd_socket(folder: Path) -> Path:
    """Where containerd listens."""
    return folder / "containerd.sock"


def ctr(folder: Path, *arguments: str | Path, check: bool = True) -> str:
    """`ctr` in the namespace of Kubernetes."""
    return run([find_tool("ctr"), "--address", containerd_socket(folder), "-n", "k8s.io", *arguments], check=check)


def start_containerd(plane: ControlPlane) -> None:
    """containerd with its own root, state and socket, and the pause image in it."""
    folder = plane.folder
    (folder / "cni").mkdir(exist_ok=True)
    (folder / "cni" / "10-trimtab.conflist").write_text(json.dumps(_network(folder), indent=1))
    (folder / "containerd.toml").write_text(_containerd_config(folder))
    serve(folder)
    import_archive(folder, PAUSE_IMAGE, pause_archive())


def serve(folder: Path) -> None:
    """Start containerd on the configuration in `folder` unless it runs, and wait until it answers."""
    processes = Processes(folder)
    processes.start("containerd", [find_tool("containerd"), "--config", folder / "containerd.toml"])

    def listening() -> bool:
        try:
            ctr(folder, "version")
        except ClusterError:
            return False
        return True

    wait_for("containerd", listening, 30, processes.log("containerd"))


def import_archive(folder: Path, image: str, archive: Path) -> None:
    """Import an archive into the cluster's containerd unless exactly this one was imported before."""
    record = folder / "imported" / content_key(image)
    if record.exists() and record.read_text() == archive.name and image in ctr(folder, "images", "ls", "-q"):
        return
    ctr(folder, "images", "import", "--no-unpack", archive)
    record.parent.mkdir(exist_ok=True)
    record.write_text(archive.name)


def _network(folder: Path) -> dict[str, object]:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_CIDR, "gateway": BRIDGE_ADDRESS}]],
        "dataDir": str(folder / "ipam"),
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [bridge]}


def _containerd_config(folder: Path) -> str:
    return f"""\
version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
  address = "{containerd_socket(folder)}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""
