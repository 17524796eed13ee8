"""Kernels that were measured (data/perf_coefficients.json), and the roofline by which replicas are compared."""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.parameters import Parameters, count_parameters
from trimtab.catalog.quantization import weight_format

PLAIN, INT8_WEIGHTS, INT4_WEIGHTS, INT8, FP8 = "16-bit", "8-bit-weights", "4-bit-weights", "8-bit-int", "8-bit-float"
INSTEAD = MappingProxyType({INT8: (FP8, INT8_WEIGHTS, PLAIN), FP8: (INT8_WEIGHTS, PLAIN)})
"""Formats to scale from where none of the same kind was measured."""
FORMATS = MappingProxyType(
    {
        "none": PLAIN,
        "awq": INT4_WEIGHTS,
        "gptq": INT4_WEIGHTS,
        "marlin": INT4_WEIGHTS,
        "exl2": INT4_WEIGHTS,
        "mxfp4": INT4_WEIGHTS,
        "eetq": INT8_WEIGHTS,
        "fp8": FP8,
        "compressed-tensors": INT8,
    }
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """One measured combination, as in the data file."""

    gpu: str
    model: str
    format: str
    gpus: int
    estimate: bool
    """Scaled by whoever published it."""
    gemm_tokens: tuple[float, ...]
    gemm_ms: tuple[float, ...]
    head_sequences: tuple[float, ...]
    head_ms: tuple[float, ...]
    decode_const_ms: float
    decode_kv_token_ms: float
    prefill_const_ms: float
    prefill_token_ms: float
    prefill_square_ms: float
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measurements:
    """The whole data file; times in ms."""

    entries: tuple[Kernels, ...]
    host_ms: float
    host_sequence_ms: float
    sources: MappingProxyType[str, str]


@dataclass(frozen=True, slots=True)
class Replica:
    """What decides speed, of the measured or of the wanted combination; times in ms."""

    model: ModelFacts
    parameters: Parameters
    gpu: GpuFacts
    gpus: int
    format: str
    weight_bytes: float

    @property
    def bytes_per_ms(self) -> float:
        """Memory bandwidth of all GPUs."""
        return self.gpu.bandwidth_gb_s * 1e6 * self.gpus

    @property
    def flops_16_bit(self) -> float:
        """Dense 16-bit operations a ms of all GPUs."""
        return (self.gpu.bf16_tflops or self.gpu.fp16_tflops) * 1e9 * self.gpus

    @property
    def flops(self) -> float:
        """Operations a ms in the format's arithmetic."""
        plain = self.gpu.bf16_tflops or self.gpu.fp16_tflops
        fast = {FP8: self.gpu.fp8_tflops, INT8: self.gpu.int8_tops}.get(self.format)
        return (fast or plain) * 1e9 * self.gpus

    def read_ms(self, tokens: float) -> float:
        """Time to read the weights that a pass of so many tokens touches."""
        whole = self.parameters.linear
        if not whole:
            return 0.0
        touched = float(whole - self.parameters.experts)
        if self.model.experts is not None:
            share = self.model.experts.active / self.model.experts.count
            touched += self.parameters.experts * (1 - (1 - share) ** max(tokens, 1.0))
        return touched * self.weight_bytes / self.bytes_per_ms

    @property
    def compute_ms(self) -> float:
        """Time to compute one token."""
        return 2 * self.parameters.active_linear / self.flops

    @property
    def head_bytes(self) -> float:
        """Of the output head, which no format quantizes."""
        return 2.0 * self.model.vocab_size * self.model.hidden_size

    @property
    def width(self) -> float:
        """Of attention, all layers."""
        return float(self.layers * self.model.num_heads * self.model.head_dim)

    @property
    def layers(self) -> int:
        """Layers with keys and values."""
        return self.model.num_layers if self.model.kv_layers is None else self.model.kv_layers

    @property
    def kv_ms(self) -> float:
        """Time to read one cached token of 16 bits."""
        heads = max(1, math.ceil(self.model.num_kv_heads / self.gpus)) * self.gpus
        return 4.0 * self.layers * heads * self.model.head_dim / self.bytes_per_ms


@lru_cache(maxsize=1)
def measurements() -> Measurements:
    """The bundled data; read once."""
    text = (resources.files("trimtab.catalog") / "data" / "perf_coefficients.json").read_text("utf-8")
    raw: dict[str, Any] = json.loads(text)
    entries = tuple(_kernels(record) for record in raw["entries"])
    return Measurements(entries, raw["host"]["step_ms"], raw["host"]["sequence_ms"], MappingProxyType(raw["sources"]))


def _kernels(record: dict[str, Any]) -> Kernels:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return Kernels(**values)


@lru_cache(maxsize=256)
def measured_replica(entry: Kernels) -> Replica:
    """The replica on which an entry was measured."""
    model, gpu = load_catalogue().model(entry.model), load_catalogue().gpu(entry.gpu)
    if model is None or gpu is None:
        raise LookupError(f"{entry.model} on {entry.gpu} is measured but not in the catalogue")
    quantization = next(name for name, format_ in FORMATS.items() if format_ == entry.format)
    size = weight_format(quantization, None).bytes_per_weight
    return Replica(model, count_parameters(model), gpu, entry.gpus, entry.format, size)


def kernel_format(model: ModelFacts, gpu: GpuFacts, quantization: str) -> str:
    """Which kind of kernel runs: 8-bit floats without such tensor cores are unpacked to 16 bits."""
    name = FORMATS.get(quantization, PLAIN)
    if name == FP8 and gpu.fp8_tflops is None:
        return INT8_WEIGHTS
    if name == INT8 and model.checkpoint is not None:
        if not model.checkpoint.activations:
            return INT4_WEIGHTS if model.checkpoint.bits <= 4 else INT8_WEIGHTS
        if model.checkpoint.weights == "float":
            return FP8 if gpu.fp8_tflops is not None else INT8_WEIGHTS
    return name
