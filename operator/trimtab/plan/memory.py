"""What lies in GPU memory: weights, KV cache and the rest.

Every formula describes one GPU of `shards` that hold a replica together; capacity is that of the fullest one.
docs/planner.md states the formulas with their sources and how far they are from what engines logged.
"""

import math
from dataclasses import dataclass

from trimtab.catalog.models import ModelFacts
from trimtab.catalog.parameters import Parameters, count_parameters
from trimtab.catalog.quantization import NONE, ON_THE_FLY, WeightFormat, quantization_of, weight_format

GIB = 2**30
MIB = 2**20
BYTES_16_BIT = 2
PLAIN = weight_format(NONE, None)

LOADED_FACTOR = 1.01
"""Loaded weights over the size of the tensors: allocator rounding and buffers. Public logs show 0 to 1.4 %."""

PROJECTION_WIDTHS = 3
"""Live activations of a block during prefill, in widths of MLP and residual stream (see activation_bytes)."""

PADDED_VOCABULARY = 64
MXFP4_TILE = (256, 128)
"""Experts in MXFP4 are padded to multiples of 256 (MLP width) and 128 (residual width): gpt-oss-120b loads as 65.97 GiB
instead of 60.8 (vllm-project/vllm#23278)."""


@dataclass(frozen=True, slots=True)
class MemoryAccounting:
    """How an engine's release divides the memory of a GPU. See `trimtab.plan.engine_memory` for the values."""

    usable_of_total: float
    """Share of all memory that weights, activations and KV cache may take together."""
    usable_of_free: float = 1.0
    """Share of what is free after warm-up that the KV cache takes (early TGI)."""
    runtime_bytes: int = 0
    """Context, kernels and workspaces of a process."""
    shard_bytes: int = 0
    """Communication buffers of a process when there is more than one."""
    prefill_logits_bytes: float = 0.0
    """Bytes for each prefill token and vocabulary entry in the warm-up (TGI before 3.0)."""
    sampler_bytes: float = 0.0
    """Bytes for each sequence and vocabulary entry in the warm-up (vLLM)."""
    tied_head_twice: bool = False
    """A head tied to the embedding is loaded a second time (TGI)."""
    pads_vocabulary: bool = False
    """Embedding and head are padded so that they can always be sharded (vLLM); otherwise a head that does not divide is
    held whole by each shard (TGI)."""
    replicates_kv_heads: bool = False
    """KV heads may be fewer than shards; they are then held more than once (vLLM)."""
    compresses_latent: bool = False
    """Latent attention is cached compressed (vLLM); otherwise as full heads (TGI)."""
    frees_window: bool = False
    """Layers with a sliding window keep only the window (vLLM); otherwise the whole context (TGI)."""
    offloaded_bytes: int = 0
    """Weights of each GPU that stay in host memory (vLLM's `--cpu-offload-gb`)."""
    quantizes_when_loaded: bool = False
    """FP8 is made from 16-bit weights only when all of them are on the GPU (vLLM); otherwise layer by layer (TGI)."""
    profiles_whole_context: bool = False
    """Warm-up runs a prompt of the whole context instead of one prefill budget (vLLM before chunked prefill)."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A model with its parameters counted once."""

    model: ModelFacts
    parameters: Parameters

    @classmethod
    def of(cls, model: ModelFacts) -> "ModelSizes":
        """Count the parameters of a model."""
        return cls(model, count_parameters(model))


@dataclass(frozen=True, slots=True)
class Batch:
    """What the engine is told about batches, as far as it costs memory."""

    prefill_tokens: int
    """Token budget of one prefill pass."""
    sequences: int
    """Most sequences at once."""
    max_total_tokens: int
    """Longest prompt and answer together."""
    kv_bytes_per_element: int = BYTES_16_BIT


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one GPU must hold whatever its size, in bytes."""

    weights: int
    activations: int
    runtime: int
    """Context, workspaces, communication."""
    kv_per_token: float
    """KV cache of one token (of a request of the full length, with sliding windows on average)."""
    loading: int
    """Most that weights take while they are loaded and, with on-the-fly formats, quantized."""

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Division of one GPU's memory, in bytes."""

    footprint: Footprint
    overhead: int
    """All that is neither weights nor KV cache: runtime, communication, activations, reserve."""
    kv_bytes: int
    """KV cache; negative: that much is lacking."""
    kv_tokens: int
    """Tokens of the KV cache, in whole blocks."""


def footprint(
    sizes: ModelSizes, format_: WeightFormat, shards: int, accounting: MemoryAccounting, batch: Batch
) -> Footprint:
    """What one of `shards` GPUs must hold."""
    return Footprint(
        weights=weight_bytes(sizes, format_, shards, accounting),
        activations=activation_bytes(sizes.model, shards, accounting, batch),
        runtime=accounting.runtime_bytes + (accounting.shard_bytes if shards > 1 else 0),
        kv_per_token=kv_bytes_per_token(sizes.model, shards, accounting, batch),
        loading=loading_bytes(sizes, format_, shards, accounting),
    )


def divide_memory(
    held: Footprint, memory_bytes: int, accounting: MemoryAccounting, batch: Batch, block_tokens: int = 1
) -> MemoryEstimate:
    """Divide the memory of a GPU that reports `memory_bytes` in all; the KV cache is cut into blocks."""
    kv_bytes = memory_bytes * accounting.usable_of_total - held.fixed
    if accounting.usable_of_free < 1.0:
        warm_up = batch.prefill_tokens * held.kv_per_token
        kv_bytes = accounting.usable_of_free * (kv_bytes - warm_up) + warm_up
    tokens = max(0, math.floor(kv_bytes / (held.kv_per_token * block_tokens))) * block_tokens
    return MemoryEstimate(
        footprint=held,
        overhead=memory_bytes - held.weights - int(kv_bytes),
        kv_bytes=int(kv_bytes),
        kv_tokens=tokens,
    )


def memory_needed(held: Footprint, tokens: float, accounting: MemoryAccounting, batch: Batch) -> int:
    """Total memory, in bytes, that a GPU must report so that its KV cache holds `tokens`: inverse of divide_memory."""
    kv_bytes = tokens * held.kv_per_token
    if accounting.usable_of_free < 1.0:
        warm_up = batch.prefill_tokens * held.kv_per_token
        kv_bytes = (kv_bytes - warm_up) / accounting.usable_of_free + warm_up
    return math.ceil((kv_bytes + held.fixed) / accounting.usable_of_total)


def weight_bytes(sizes: ModelSizes, format_: WeightFormat, shards: int, accounting: MemoryAccounting) -> int:
    """Bytes of weights on one GPU: linear layers, embedding and head are sharded; norms, routers and vision are not."""
    model, parameters = sizes.model, sizes.parameters
    embedding = _vocabulary_bytes(parameters.embedding, model.vocab_size, shards, padded=True)
    head_parameters = parameters.head
    if model.tied_embeddings and accounting.tied_head_twice:
        head_parameters = parameters.embedding
    head = _vocabulary_bytes(head_parameters, model.vocab_size, shards, padded=accounting.pads_vocabulary)
    whole = (parameters.other + parameters.vision) * BYTES_16_BIT
    loaded = int(LOADED_FACTOR * (linear_bytes(sizes, format_) / shards + embedding + head + whole))
    return max(0, loaded - accounting.offloaded_bytes)


def loading_bytes(sizes: ModelSizes, format_: WeightFormat, shards: int, accounting: MemoryAccounting) -> int:
    """Peak of weights on one GPU during the load, before any KV cache exists.

    Formats made on the fly hold one fused gate and up projection in 16 bits besides what is already quantized (EETQ
    quantizes on the CPU and does not); vLLM makes FP8 from the whole model at once (its FP8 documentation).
    """
    ready = weight_bytes(sizes, format_, shards, accounting)
    if format_.name not in ON_THE_FLY or format_.name == quantization_of(sizes.model.checkpoint):
        return ready
    if accounting.quantizes_when_loaded and format_.name == "fp8":
        return weight_bytes(sizes, PLAIN, shards, accounting)
    if format_.name == "eetq":
        return ready
    model = sizes.model
    width = model.experts.intermediate_size if model.experts is not None else model.intermediate_size
    return ready + 2 * width * model.hidden_size * BYTES_16_BIT // shards


def linear_bytes(sizes: ModelSizes, format_: WeightFormat) -> float:
    """Bytes of all linear layers of a replica."""
    model, parameters = sizes.model, sizes.parameters
    if model.checkpoint_bytes is not None and format_.name == quantization_of(model.checkpoint):
        rest = parameters.embedding + parameters.head + parameters.other + parameters.vision
        return max(0.0, float(model.checkpoint_bytes - rest * BYTES_16_BIT))
    quantized = float(parameters.linear)
    if format_.attention_16_bit:
        quantized -= parameters.attention
    if format_.layers_16_bit:
        quantized *= 1 - format_.layers_16_bit / model.num_layers
    plain = parameters.linear - quantized
    size = format_.bytes_per_weight
    if format_.padded:
        size *= _padding(model.intermediate_size, MXFP4_TILE[0]) * _padding(model.hidden_size, MXFP4_TILE[1])
    return quantized * size + plain * BYTES_16_BIT


def _padding(size: int, tile: int) -> float:
    return math.ceil(size / tile) * tile / size


def _vocabulary_bytes(parameters: int, vocabulary: int, shards: int, *, padded: bool) -> float:
    if not padded and vocabulary % shards:
        return float(parameters * BYTES_16_BIT)
    rows = math.ceil(vocabulary / PADDED_VOCABULARY) * PADDED_VOCABULARY if shards > 1 else vocabulary
    return parameters / vocabulary * rows * BYTES_16_BIT / shards


def activation_bytes(model: ModelFacts, shards: int, accounting: MemoryAccounting, batch: Batch) -> int:
    """Peak of the warm-up pass.

    16-bit activations of one block: gate, up and their product (sharded), and the residual stream with its norms. The
    peak of the sampler or of prompt logits comes on top (TGI < 3.0) or instead when it is higher (vLLM).
    """
    width = model.intermediate_size
    if model.experts is not None:
        experts = model.experts
        width = experts.active * experts.intermediate_size + experts.shared_intermediate_size
    tokens = batch.prefill_tokens
    if accounting.profiles_whole_context:
        tokens = max(tokens, batch.max_total_tokens)
    block = tokens * BYTES_16_BIT * PROJECTION_WIDTHS * (width / shards + model.hidden_size)
    logits = batch.prefill_tokens * model.vocab_size * accounting.prefill_logits_bytes
    sampler = batch.sequences * model.vocab_size * accounting.sampler_bytes
    return int(max(block + logits, sampler))


def kv_heads_per_gpu(model: ModelFacts, shards: int, accounting: MemoryAccounting) -> int:
    """KV heads that one GPU holds."""
    if model.num_kv_heads == 1 or accounting.replicates_kv_heads:
        return max(1, math.ceil(model.num_kv_heads / shards))
    return math.ceil(model.num_kv_heads / shards)


def kv_bytes_per_token(model: ModelFacts, shards: int, accounting: MemoryAccounting, batch: Batch) -> float:
    """Bytes of keys and values of one token on one GPU.

    With layers that keep only a window, the mean over a request of the full length.
    """
    layers = float(model.num_layers if model.kv_layers is None else model.kv_layers)
    if accounting.frees_window and model.sliding_window is not None:
        window = model.sliding_window
        kept = min(batch.max_total_tokens, window.window - 1 + batch.prefill_tokens)
        local = layers - window.full_attention_layers
        layers = window.full_attention_layers + local * kept / batch.max_total_tokens
    if model.latent_attention is not None:
        latent = model.latent_attention
        if accounting.compresses_latent:
            return layers * (latent.kv_lora_rank + latent.qk_rope_head_dim) * batch.kv_bytes_per_element
        head = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        return 2 * layers * model.num_heads / shards * head * batch.kv_bytes_per_element
    heads = kv_heads_per_gpu(model, shards, accounting)
    return 2 * layers * heads * model.head_dim * batch.kv_bytes_per_element
