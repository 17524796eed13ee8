"""What is known about models: the dimensions that decide memory and speed.

`head_dim`, `num_kv_heads`, `vocab_size` and `tied_embeddings` are stated, never derived from other fields: many
families break the usual relations (Mistral-Nemo, Qwen3 and Gemma have head_dim != hidden_size / heads).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trimtab.catalog.facts import Facts

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class SlidingWindow(Facts):
    """Layers that look back only `window` tokens."""

    window: Count
    """Tokens that a local layer sees."""
    full_attention_layers: CountOrZero
    """Layers that see the whole context."""


class Experts(Facts):
    """Mixture of experts."""

    count: Count
    """Routed experts of a layer."""
    active: Count
    """Experts that each token passes."""
    intermediate_size: Count
    """Width of one routed expert."""
    shared_intermediate_size: CountOrZero = 0
    """Summed width of the experts that every token passes; 0: none."""
    dense_layers: CountOrZero = 0
    """Layers with an ordinary MLP instead of experts."""
    dense_intermediate_size: CountOrZero = 0
    """Width of the MLP of those layers; 0: the model's `intermediate_size`."""
    bias: bool = False
    """Experts have bias vectors (gpt-oss)."""


class LatentAttention(Facts):
    """Multi-head latent attention (DeepSeek): keys and values share one compressed vector a token."""

    kv_lora_rank: Count
    """Width of the compressed vector."""
    q_lora_rank: Count | None = None
    """Width of the compressed query; None: queries are not compressed."""
    qk_rope_head_dim: Count
    """Width of the part of a key that carries the position."""
    qk_nope_head_dim: Count
    """Width of the part that does not."""
    v_head_dim: Count
    """Width of a value head."""


class CheckpointQuantization(Facts):
    """How the weights are stored in the repository, when not in 16 bits."""

    method: Literal[
        "gptq", "awq", "exl2", "marlin", "fp8", "fp8-block", "fbgemm_fp8", "compressed-tensors", "bitsandbytes", "mxfp4"
    ]
    """The quantizer, by the engines' names."""
    bits: Annotated[float, Field(gt=0, le=16)]
    """Bits of a weight, without scales and zero points."""
    group_size: int = -1
    """Weights that share a scale; -1: a whole channel."""
    weights: Literal["int", "float"] = "int"
    """Number kind of the weights (compressed-tensors)."""
    activations: bool = False
    """Activations are quantized too (W8A8)."""
    symmetric: bool = True
    """No zero points."""
    unquantized_attention: bool = False
    """Attention projections stay in 16 bits."""
    unquantized_layers: CountOrZero = 0
    """Whole layers (usually the first and the last) that stay in 16 bits."""


class ModelFacts(Facts):
    """One model; all sizes count elements, not bytes."""

    id: Annotated[str, Field(min_length=1)]
    """Hub id."""
    aliases: tuple[str, ...] = ()
    """Other repositories with the same shape."""
    family: str
    """`model_type` of config.json, by which engines pick their implementation."""
    num_layers: Count
    """Transformer blocks."""
    hidden_size: Count
    """Width of the residual stream."""
    num_heads: Count
    """Query heads."""
    num_kv_heads: Count
    """Key and value heads; fewer than `num_heads` with grouped-query attention, 1 with multi-query attention."""
    head_dim: Count
    """Width of a head."""
    intermediate_size: Count
    """Width of the MLP."""
    gated_mlp: bool = True
    """Three matrices (gate, up, down) instead of two."""
    vocab_size: Count
    """Rows of the embedding."""
    max_position: Count
    """Longest context that the model was made for, in tokens."""
    tied_embeddings: bool
    """The output head is the embedding."""
    dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"
    """Number format that the model was trained in."""
    sliding_window: SlidingWindow | None = None
    """None: every layer sees the whole context."""
    kv_layers: Count | None = None
    """Layers that keep keys and values, where that is not all of them (hybrid linear attention)."""
    experts: Experts | None = None
    """None: a dense model."""
    latent_attention: LatentAttention | None = None
    """None: ordinary attention."""
    vision_parameters: CountOrZero = 0
    """Parameters of the vision tower."""
    checkpoint: CheckpointQuantization | None = None
    """None: 16-bit weights."""
    checkpoint_bytes: Count | None = None
    """Size of the weight files, where known from headers or because the shape does not give it."""
    tgi_native: bool = True
    """TGI has its own sharded implementation; otherwise it goes through transformers, on one GPU."""
    size_class: Literal["small", "medium", "large"] | None = None
    """Set on the models among which `model.size` chooses."""
    quality_index: Annotated[float, Field(ge=0, le=100)] | None = None
    """Published MMLU score; compared within one size class only (see `quality_source`)."""
    quality_source: str = ""
    """Where the score was published."""
    gated: bool = False
    """The Hub asks for consent before a download: a token is needed."""
    published_parameters: str = ""
    """Parameter count as published."""
    confidence: Literal["high", "medium", "low"] = "high"
    """How well the facts are founded."""
    notes: str = ""
    """What to know beyond the figures."""
    sources: tuple[str, ...]
    """Where the facts come from."""
    variants: dict[str, dict[str, Any]] = {}
    """Alias → the fields in which it differs."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.num_kv_heads > self.num_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} must not exceed num_heads {self.num_heads}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}")
        if self.kv_layers is not None and self.kv_layers > self.num_layers:
            raise ValueError(f"kv_layers {self.kv_layers} must not exceed num_layers {self.num_layers}")
        return self
