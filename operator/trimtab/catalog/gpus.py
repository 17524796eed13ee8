"""What is known about GPU products. Figures carry their public sources in data/gpus.json."""

import re
from typing import Annotated, Literal

from pydantic import Field

from trimtab.catalog.facts import Facts

GIB = 2**30

Positive = Annotated[float, Field(gt=0)]


class Price(Facts):
    """One list price."""

    usd_per_gpu_hour: Annotated[float, Field(ge=0)]
    """On-demand price of one GPU, in US dollars an hour."""
    provider: str
    """Who sells it."""
    source: str
    """Where the price was read, with its date."""
    confidence: Literal["high", "medium", "low"] = "high"
    """How dependable it is; low ones (round-ups of marketplaces) are shown but not planned with."""


class GpuFacts(Facts):
    """One GPU product."""

    id: Annotated[str, Field(min_length=1)]
    """Name in the catalogue, for instance `A100-80GB`."""
    aliases: tuple[str, ...] = ()
    """Other names that people use."""
    product_labels: tuple[str, ...] = ()
    """Values of the node label `nvidia.com/gpu.product` (or the vendor's own) that mean this product."""
    vendor: Literal["nvidia", "amd", "intel"] = "nvidia"
    """Who makes it."""
    resource: str = "nvidia.com/gpu"
    """Name of the extended resource that pods request."""
    compute_capability: Annotated[float, Field(ge=1)] | None = None
    """CUDA compute capability; None for other vendors."""
    memory_gib: Positive
    """Memory that the driver reports as total on an idle device, in GiB; less than the data sheet says."""
    bandwidth_gb_s: Positive
    """Memory bandwidth, in 1e9 bytes a second."""
    fp16_tflops: Positive
    """Dense FP16 tensor throughput (no structured sparsity), in 1e12 operations a second."""
    bf16_tflops: Positive | None = None
    """Dense BF16 throughput; None where the product has no BF16."""
    int8_tops: Positive | None = None
    """Dense INT8 throughput, in 1e12 operations a second."""
    fp8_tflops: Positive | None = None
    """Dense FP8 throughput; None where the tensor cores have no FP8."""
    nvlink_gb_s: Annotated[float, Field(ge=0)] = 0
    """Bidirectional bandwidth of the direct link to the other GPUs of a node, in 1e9 bytes a second; 0: PCIe only."""
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    """GPUs of the largest usual machine; what is assumed while no nodes are known."""
    host_architecture: Literal["amd64", "arm64"] = "amd64"
    """Processor of the machines that have it."""
    mig_profiles: tuple[str, ...] = ()
    """Slices that the product can be cut into."""
    sliced: bool = False
    """A part of a GPU, cut off from the other parts: it cannot work together with them."""
    prices: tuple[Price, ...] = ()
    """List prices; defaults that a spec or the operator's settings override."""
    confidence: Literal["high", "medium", "low"] = "medium"
    """How well the figures are founded."""
    notes: str = ""
    """What to know beyond the figures."""
    sources: tuple[str, ...]
    """Where the figures come from."""

    @property
    def memory_bytes(self) -> int:
        """`memory_gib` in bytes."""
        return int(self.memory_gib * GIB)

    @property
    def price_per_hour(self) -> float | None:
        """Lowest dependable list price of one GPU, in US dollars an hour; None when none is listed."""
        dependable = (price.usd_per_gpu_hour for price in self.prices if price.confidence != "low")
        return min(dependable, default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Everything this product is called."""
        return (self.id, *self.aliases, *self.product_labels)


_MIG_LABEL = re.compile(r"^(?P<product>.+)-MIG-(?P<compute>[1-7])g\.(?P<memory>\d+)gb$", re.IGNORECASE)
_MIG_COMPUTE_SLICES = 7
_MIG_USABLE = 0.96
"""Memory of a slice over its share of the whole: 1g.10gb of an A100-80GB reports 9.5 GiB (NVIDIA MIG user guide)."""


def split_mig_label(label: str) -> tuple[str, int, int] | None:
    """Product, compute slices and GB of a slice's label (`NVIDIA-A100-SXM4-80GB-MIG-1g.10gb`); None for others."""
    match = _MIG_LABEL.match(label)
    return (match["product"], int(match["compute"]), int(match["memory"])) if match else None


def mig_slice(gpu: GpuFacts, compute: int, memory_gb: int) -> GpuFacts:
    """A slice of a GPU as a product of its own: its share of memory, bandwidth, arithmetic and price.

    Memory is cut into eighths, of which bandwidth follows, arithmetic into sevenths (NVIDIA MIG user guide).
    """
    profile = f"{compute}g.{memory_gb}gb"
    whole_gb = max((int(known.split(".")[1].removesuffix("gb")) for known in gpu.mig_profiles), default=memory_gb)
    memory, arithmetic = memory_gb / whole_gb, compute / _MIG_COMPUTE_SLICES
    scaled = {
        name: None if getattr(gpu, name) is None else getattr(gpu, name) * arithmetic
        for name in ("fp16_tflops", "bf16_tflops", "int8_tops", "fp8_tflops")
    }
    return gpu.model_copy(
        update={
            **scaled,
            "id": f"{gpu.id}-MIG-{profile}",
            "aliases": (),
            "product_labels": tuple(f"{label}-MIG-{profile}" for label in gpu.product_labels),
            "memory_gib": gpu.memory_gib * memory * _MIG_USABLE,
            "bandwidth_gb_s": gpu.bandwidth_gb_s * memory,
            "nvlink_gb_s": 0,
            "mig_profiles": (),
            "prices": tuple(
                price.model_copy(update={"usd_per_gpu_hour": price.usd_per_gpu_hour * arithmetic})
                for price in gpu.prices
            ),
            "gpus_per_node": gpu.gpus_per_node * (_MIG_COMPUTE_SLICES // compute),
            "confidence": "low",
            "sliced": True,
        }
    )
