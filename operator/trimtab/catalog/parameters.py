"""How many parameters a model has, by what happens to them: quantized, sharded, or neither.

Formulas follow the public reference implementations (transformers) of each architecture: grouped-query attention
has q, k, v and o projections, latent attention the five matrices of the DeepSeek-V2 paper (arXiv 2405.04434, section
2.1), a gated MLP three matrices.
"""

from dataclasses import dataclass

from trimtab.catalog.models import Experts, LatentAttention, ModelFacts

_BIASED_ATTENTION = frozenset({"qwen2", "glm", "chatglm", "gpt_oss"})


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of weights; embedding and head are rows x columns."""

    embedding: int
    head: int
    """0 when tied to the embedding."""
    attention: int
    """Projections of all layers."""
    mlp: int
    """MLPs and shared experts of all layers."""
    experts: int
    """Routed experts of all layers."""
    active_experts: int
    """The part of `experts` that one token passes."""
    other: int
    """Norms, biases and routers: 16-bit and held whole by each GPU."""
    vision: int
    """Vision tower: 16-bit and held whole by each GPU."""

    @property
    def linear(self) -> int:
        """What quantization shrinks."""
        return self.attention + self.mlp + self.experts

    @property
    def active_linear(self) -> int:
        """Linear weights that one token passes."""
        return self.attention + self.mlp + self.active_experts

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.head + self.linear + self.other + self.vision


def count_parameters(model: ModelFacts) -> Parameters:
    """Parameters of a model from its shape.

    A model whose layers are not all alike (hybrid linear attention) must state `checkpoint_bytes`; what the embeddings
    leave of it then counts as MLP.
    """
    embedding = model.vocab_size * model.hidden_size
    head = 0 if model.tied_embeddings else embedding
    if model.kv_layers is not None and model.checkpoint_bytes is not None:
        linear = max(0, model.checkpoint_bytes // 2 - embedding - head - model.vision_parameters)
        return Parameters(embedding, head, 0, linear, 0, 0, 0, model.vision_parameters)
    mlp, experts, active = _feed_forward(model)
    return Parameters(
        embedding=embedding,
        head=head,
        attention=model.num_layers * _attention(model),
        mlp=mlp,
        experts=experts,
        active_experts=active,
        other=_other(model),
        vision=model.vision_parameters,
    )


def _attention(model: ModelFacts) -> int:
    if model.latent_attention is not None:
        return _latent(model, model.latent_attention)
    query = model.num_heads * model.head_dim
    key_value = model.num_kv_heads * model.head_dim
    return 2 * model.hidden_size * (query + key_value)


def _latent(model: ModelFacts, latent: LatentAttention) -> int:
    key = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    if latent.q_lora_rank is None:
        query = model.hidden_size * model.num_heads * key
    else:
        query = latent.q_lora_rank * (model.hidden_size + model.num_heads * key)
    compress = model.hidden_size * (latent.kv_lora_rank + latent.qk_rope_head_dim)
    expand = latent.kv_lora_rank * model.num_heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    return query + compress + expand + model.num_heads * latent.v_head_dim * model.hidden_size


def _feed_forward(model: ModelFacts) -> tuple[int, int, int]:
    matrices = 3 if model.gated_mlp else 2
    if model.experts is None:
        return model.num_layers * matrices * model.hidden_size * model.intermediate_size, 0, 0
    return _mixture(model, model.experts, matrices * model.hidden_size)


def _mixture(model: ModelFacts, experts: Experts, column: int) -> tuple[int, int, int]:
    sparse_layers = model.num_layers - experts.dense_layers
    dense_width = experts.dense_intermediate_size or model.intermediate_size
    mlp = column * (experts.dense_layers * dense_width + sparse_layers * experts.shared_intermediate_size)
    one = column * experts.intermediate_size * sparse_layers
    return mlp, one * experts.count, one * experts.active


def _other(model: ModelFacts) -> int:
    norms = (2 * model.num_layers + 1) * model.hidden_size
    bias = 0
    if model.family in _BIASED_ATTENTION:
        bias = model.num_layers * (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    routers = 0
    if model.experts is not None:
        sparse_layers = model.num_layers - model.experts.dense_layers
        routers = sparse_layers * model.experts.count * model.hidden_size
        if model.experts.bias:
            width = 2 * model.experts.intermediate_size + model.hidden_size
            bias += sparse_layers * model.experts.count * width
    return norms + bias + routers
