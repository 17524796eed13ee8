"""Number formats of weights: bytes, and the quality that they are published to cost.

Names are the engines' own (`--quantize` of TGI, `--quantization` of vLLM), as in `spec.quantization`.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from trimtab.catalog.models import CheckpointQuantization, ModelFacts

NONE = "none"
SMALL_MODEL_PARAMETERS = 3_000_000_000
"""Below this, 4-bit formats cost about twice as much quality (see QUALITY_LOSS)."""

ALIASES = MappingProxyType(
    {
        "fp16": NONE,
        "bf16": NONE,
        "float16": NONE,
        "bfloat16": NONE,
        "bnb": "bitsandbytes",
        "bnb-int8": "bitsandbytes",
        "bnb-nf4": "bitsandbytes-nf4",
        "bnb-fp4": "bitsandbytes-fp4",
        "nf4": "bitsandbytes-nf4",
        "fp4": "bitsandbytes-fp4",
        "int8": "compressed-tensors",
        "w8a8": "compressed-tensors",
    }
)
"""Other names that people write on a command line."""

ON_THE_FLY = ("bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "eetq", "fp8")
"""Formats that an engine can make from 16-bit weights while it loads them."""

READY_MADE = ("awq", "gptq", "marlin", "exl2", "compressed-tensors", "mxfp4")
"""Formats that need a checkpoint stored that way."""

REQUESTABLE = (NONE, *ON_THE_FLY, *READY_MADE)
"""All values of `spec.quantization` but `auto`, in order of preference among equals."""


@dataclass(frozen=True, slots=True)
class QualityLoss:
    """What a format is published to cost."""

    points: float
    """Points of a benchmark average out of 100, against 16 bits."""
    source: str


QUALITY_LOSS = MappingProxyType(
    {
        NONE: QualityLoss(0.0, "reference"),
        "fp8": QualityLoss(0.1, "'Give Me BF16 or Give Me Death?', arXiv 2411.02355: W8A8-FP8 lossless within error"),
        "eetq": QualityLoss(0.2, "W8A16 model cards of Red Hat AI, Llama-3-8B: OpenLLM average 68.69 to 68.54"),
        "bitsandbytes": QualityLoss(0.2, "LLM.int8(), arXiv 2208.07339: no measurable loss at 6.7B to 13B"),
        "compressed-tensors": QualityLoss(0.8, "arXiv 2411.02355: INT8 W8A8 1 to 3 % on single tasks when tuned"),
        "awq": QualityLoss(1.0, "W4A16 model cards of Red Hat AI, Llama-3.1-8B: OpenLLM v1 recovery 98.9 %"),
        "gptq": QualityLoss(1.1, "AWQ, arXiv 2306.00978: WikiText-2 perplexity 7B 5.60 AWQ, 5.69 GPTQ, 5.47 FP16"),
        "marlin": QualityLoss(1.1, "a packing of GPTQ weights"),
        "exl2": QualityLoss(1.2, "comparable to GPTQ at 4 bits a weight; less below"),
        "bitsandbytes-nf4": QualityLoss(
            1.0, "QLoRA, arXiv 2305.14314; JarvisLabs, Qwen2.5-32B: perplexity 6.56 to 6.67"
        ),
        "bitsandbytes-fp4": QualityLoss(2.0, "QLoRA, arXiv 2305.14314, table 2: FP4 about one point below NF4"),
        "mxfp4": QualityLoss(0.0, "trained in this format"),
    }
)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How many bytes the linear weights of a model take."""

    name: str
    bytes_per_weight: float
    """Of quantized linear layers, with scales and zero points."""
    group_size: int = -1
    """Weights that share a scale: a shard must hold whole groups; -1: no such limit."""
    activations: bool = False
    """Activations are quantized too, so that matrix products run on 8-bit tensor cores."""
    attention_16_bit: bool = False
    layers_16_bit: int = 0
    padded: bool = False
    """Experts are padded to whole tiles when loaded (MXFP4)."""


def grouped_bytes(bits: float, group_size: int, *, symmetric: bool) -> float:
    """Bytes of a weight with a 16-bit scale (and a zero point of `bits`) for each group."""
    if group_size <= 0:
        return bits / 8
    return (bits + 16 / group_size + (0 if symmetric else bits / group_size)) / 8


def canonical(name: str) -> str:
    """The engines' name for what a person wrote, for instance `bnb-nf4`, `awq-4bit-g128`, `bf16`."""
    lower = name.lower()
    if lower in REQUESTABLE or lower == "auto":
        return lower
    if lower in ALIASES:
        return ALIASES[lower]
    base = lower.split("-")[0]
    return base if base in REQUESTABLE else ALIASES.get(base, lower)


_ROW_SCALES = 1.001
_NF4 = 0.516
"""4 bits, 8-bit block scales of 64 weights, 32-bit scales of 256 blocks: 4.127 bits (QLoRA, section 3)."""
_PLAIN_FORMATS = MappingProxyType(
    {
        NONE: WeightFormat(NONE, 2.0),
        "bitsandbytes": WeightFormat("bitsandbytes", _ROW_SCALES),
        "bitsandbytes-nf4": WeightFormat("bitsandbytes-nf4", _NF4),
        "bitsandbytes-fp4": WeightFormat("bitsandbytes-fp4", _NF4),
        "eetq": WeightFormat("eetq", _ROW_SCALES),
        "fp8": WeightFormat("fp8", 1.0, activations=True),
        "awq": WeightFormat("awq", grouped_bytes(4, 128, symmetric=False), 128),
        "gptq": WeightFormat("gptq", grouped_bytes(4, 128, symmetric=False), 128),
        "marlin": WeightFormat("marlin", grouped_bytes(4, 128, symmetric=True), 128),
        "exl2": WeightFormat("exl2", 0.5),
        "compressed-tensors": WeightFormat("compressed-tensors", _ROW_SCALES, activations=True),
        "mxfp4": WeightFormat("mxfp4", 17 / 32, 32, attention_16_bit=True, padded=True),
    }
)


@lru_cache(maxsize=1024)
def weight_format(quantization: str, checkpoint: CheckpointQuantization | None) -> WeightFormat:
    """The format in which weights lie in GPU memory.

    `quantization` is a name of REQUESTABLE; details (bits, groups, layers left out) come from the checkpoint when it
    is stored that way, otherwise the usual ones are assumed (4 bits, groups of 128).
    """
    if checkpoint is None or quantization != quantization_of(checkpoint):
        return _PLAIN_FORMATS[quantization]
    if checkpoint.method == "bitsandbytes":
        return _PLAIN_FORMATS[quantization]
    if checkpoint.method == "fp8-block":
        size = 1 + 4 / checkpoint.group_size**2
    elif checkpoint.method == "exl2":
        size = checkpoint.bits / 8
    else:
        size = grouped_bytes(checkpoint.bits, checkpoint.group_size, symmetric=checkpoint.symmetric)
    return WeightFormat(
        quantization,
        17 / 32 if checkpoint.method == "mxfp4" else size,
        checkpoint.group_size,
        activations=checkpoint.activations,
        attention_16_bit=checkpoint.unquantized_attention,
        layers_16_bit=checkpoint.unquantized_layers,
        padded=checkpoint.method == "mxfp4",
    )


def quantization_of(checkpoint: CheckpointQuantization | None) -> str:
    """The name by which engines call the format of a checkpoint."""
    if checkpoint is None:
        return NONE
    match checkpoint.method:
        case "fp8" | "fp8-block" | "fbgemm_fp8":
            return "fp8"
        case "bitsandbytes":
            return "bitsandbytes-nf4" if checkpoint.bits <= 4 else "bitsandbytes"
        case method:
            return method


def quality_loss(quantization: str, model: ModelFacts, parameters: int) -> float:
    """Points that a format costs on a model: published figures, doubled for 4 bits on small models.

    Four-bit weights hurt small models more: arXiv 2411.02355 finds 8B models lose about twice what 70B models do; below
    3B nothing better is published.
    """
    loss = QUALITY_LOSS[quantization].points
    bits = weight_format(quantization, model.checkpoint).bytes_per_weight * 8
    if bits < 6 and parameters < SMALL_MODEL_PARAMETERS and quantization != "mxfp4":
        return 2 * loss
    return loss
