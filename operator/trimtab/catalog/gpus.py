"""What is known about GPU products. Figures carry their public sources in data/gpus.json."""

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
