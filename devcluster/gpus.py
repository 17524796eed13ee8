"""GPUs that the node seems to have: the scheduler really counts them, and nothing else of them exists."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from devcluster.controlplane import ControlPlane
from devcluster.paths import NODE, ClusterError

DEFAULT = "NVIDIA-L4"
# Product label → (memory in MiB as NVML reports it, compute capability), as GPU feature discovery labels such nodes.
PRODUCTS: dict[str, tuple[int, str]] = {
    "Tesla-T4": (15360, "7.5"),
    "NVIDIA-A10G": (23028, "8.6"),
    "NVIDIA-L4": (23034, "8.9"),
    "NVIDIA-L40S": (46068, "8.9"),
    "NVIDIA-A100-SXM4-40GB": (40960, "8.0"),
    "NVIDIA-A100-SXM4-80GB": (81920, "8.0"),
    "NVIDIA-H100-80GB-HBM3": (81559, "9.0"),
    "NVIDIA-H200": (143771, "9.0"),
}
# Values of the label nvidia.com/gpu.family (NVIDIA/k8s-device-plugin, internal/lm) by compute capability.
_FAMILIES = {"7.0": "volta", "7.5": "turing", "8.0": "ampere", "8.6": "ampere", "8.9": "ada-lovelace", "9.0": "hopper"}


@dataclass(frozen=True)
class Gpus:
    """`count` GPUs of one product; memory of one in MiB."""

    product: str
    count: int
    memory_mib: int
    capability: str

    def labels(self) -> dict[str, str]:
        """Node labels as GPU feature discovery sets them."""
        major, minor = self.capability.split(".")
        return {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": self.product,
            "nvidia.com/gpu.family": _FAMILIES.get(self.capability, "undefined"),
            "nvidia.com/gpu.memory": str(self.memory_mib),
            "nvidia.com/gpu.count": str(self.count),
            "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.sharing-strategy": "none",
            "nvidia.com/gpu.compute.major": major,
            "nvidia.com/gpu.compute.minor": minor,
        }


def known(product: str, count: int) -> Gpus | None:
    """GPUs of a product in the table, None for another product."""
    facts = PRODUCTS.get(product)
    return None if facts is None else Gpus(product, count, *facts)


def choose(
    folder: Path, product: str | None, count: int | None, memory_mib: int | None, capability: str | None
) -> Gpus:
    """What the arguments ask for; where one is None, what `folder` records, else eight of the default product.

    Raises ClusterError for a product outside the table whose memory or compute capability is not given.
    """
    before = _recorded(folder)
    wanted = product or before.product
    number = before.count if count is None else count
    base = replace(before, count=number) if wanted == before.product else known(wanted, number)
    if base is None:
        if memory_mib is None or capability is None:
            raise ClusterError(
                f"GPU product {wanted} is not one of {', '.join(PRODUCTS)}:"
                " give --gpu-memory-mib and --compute-capability too"
            )
        base = Gpus(wanted, number, memory_mib, capability)
    return replace(base, memory_mib=memory_mib or base.memory_mib, capability=capability or base.capability)


def advertise(plane: ControlPlane, gpus: Gpus) -> None:
    """Label the node and patch its status, which Kubernetes documents for extended resources.

    The kubelet keeps such a resource in its reports, but starts from none when it registers anew: `up` patches again.
    """
    labels = [f"{name}={value}" for name, value in gpus.labels().items()]
    plane.kubectl("label", "node", NODE, "--overwrite", *labels)
    amounts = {"nvidia.com/gpu": str(gpus.count)}
    patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
    plane.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", patch)
    _record(plane.folder).write_text(json.dumps(asdict(gpus)))


def _record(folder: Path) -> Path:
    return folder / "gpus.json"


def _recorded(folder: Path) -> Gpus:
    try:
        return Gpus(**json.loads(_record(folder).read_text()))
    except (OSError, ValueError, TypeError):
        return Gpus(DEFAULT, 8, *PRODUCTS[DEFAULT])
