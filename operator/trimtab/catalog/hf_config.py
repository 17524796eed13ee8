"""Model facts from a Hub repository's config.json, for models that the catalogue does not list."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.catalog.models import CheckpointQuantization, ModelFacts
from trimtab.catalog.safetensors import TensorSummary

# model_type of which TGI 3.3.7 has a sharded implementation of its own
# (server/text_generation_server/models/__init__.py at v3.3.7).
TGI_NATIVE_FAMILIES = frozenset(
    {
        "llama", "mistral", "mixtral", "qwen2", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3", "phimoe", "phi",
        "falcon", "RefinedWeb", "RefinedWebModel", "deepseek_v2", "deepseek_v3", "cohere", "dbrx", "gpt_neox", "gpt2",
        "gpt_bigcode", "starcoder2", "granite", "baichuan", "mllama", "idefics2", "idefics3", "llava_next", "qwen2_vl",
        "qwen2_5_vl", "paligemma", "mpt", "bloom", "santacoder", "gptj",
    }
)  # fmt: skip
_UNGATED_FAMILIES = frozenset({"falcon", "RefinedWeb", "RefinedWebModel", "gpt_neox", "gpt2", "gpt_bigcode", "phi",
                               "starcoder2", "bloom", "mpt", "gptj", "opt"})  # fmt: skip
_NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_OTHER_NAMES = {
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers"),
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions", "seq_length", "max_seq_len", "max_sequence_length"),
    "vocab_size": ("padded_vocab_size",),
}


def model_from_config(
    model_id: str, config: Mapping[str, Any], tensors: TensorSummary | None = None, field: str = "config.json"
) -> ModelFacts:
    """The facts that a config.json states.

    `tensors` sums up the safetensors headers when they are at hand: it gives the exact size of the weights. Raises
    InvalidSpecError, naming the missing or wrong keys below `field`, when the file does not describe a decoder that the
    planner understands.
    """
    text = _text_part(config)
    missing = [key for key in _NEEDED if not isinstance(_get(text, key), int)]
    if missing:
        raise InvalidSpecError(
            tuple(
                FieldError(f"{field}.{key}", _get(text, key), "is needed to size the model", "a positive integer")
                for key in missing
            )
        )
    try:
        return ModelFacts.model_validate(_facts(model_id, config, text, tensors))
    except ValidationError as invalid:
        raise InvalidSpecError(
            tuple(
                FieldError(f"{field}.{'.'.join(map(str, error['loc']))}", error["input"], str(error["msg"]))
                for error in invalid.errors()
            )
        ) from None


def checkpoint_from_config(config: Mapping[str, Any]) -> CheckpointQuantization | None:
    """How a repository's weights are stored, by `quantization_config`; None: 16 bits or an unknown method."""
    stored = config.get("quantization_config") or _text_part(config).get("quantization_config")
    if not isinstance(stored, Mapping):
        return None
    group = int(stored.get("group_size") or stored.get("q_group_size") or -1)
    match str(stored.get("quant_method", "")).lower():
        case "gptq" | "awq" | "marlin" as method:
            bits = float(stored.get("bits") or stored.get("w_bit") or 4)
            symmetric = method != "awq" and bool(stored.get("sym", True))
            return CheckpointQuantization(method=method, bits=bits, group_size=group, symmetric=symmetric)
        case "exl2":
            return CheckpointQuantization(method="exl2", bits=float(stored.get("bits") or 4))
        case "fp8" if stored.get("weight_block_size"):
            block = int(stored["weight_block_size"][0])
            return _float8("fp8-block", block)
        case "fp8":
            return _float8("fp8")
        case "fbgemm_fp8":
            left_out = [str(name) for name in stored.get("modules_to_not_convert") or ()]
            attention = any("self_attn" in name for name in left_out)
            layers = len({name.split(".")[2] for name in left_out if name.endswith("mlp.down_proj")})
            return _float8("fbgemm_fp8").model_copy(
                update={"unquantized_attention": attention, "unquantized_layers": layers}
            )
        case "bitsandbytes":
            return CheckpointQuantization(method="bitsandbytes", bits=4 if stored.get("load_in_4bit") else 8)
        case "mxfp4":
            return CheckpointQuantization(
                method="mxfp4", bits=4, group_size=32, weights="float", unquantized_attention=True
            )
        case "compressed-tensors":
            return _compressed(stored)
    return None


def _float8(method: Any, group_size: int = -1) -> CheckpointQuantization:
    return CheckpointQuantization(method=method, bits=8, group_size=group_size, weights="float", activations=True)


def _compressed(stored: Mapping[str, Any]) -> CheckpointQuantization:
    groups = stored.get("config_groups") or {}
    group: Mapping[str, Any] = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights: Mapping[str, Any] = group.get("weights") or {}
    return CheckpointQuantization(
        method="compressed-tensors",
        bits=float(weights.get("num_bits") or 8),
        group_size=int(weights.get("group_size") or -1),
        weights="float" if weights.get("type") == "float" else "int",
        activations=group.get("input_activations") is not None,
        symmetric=bool(weights.get("symmetric", True)),
    )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("text_config", "llm_config", "language_config"):
        part = config.get(key)
        if isinstance(part, Mapping) and _get(part, "hidden_size"):
            return part
    return config


def _get(config: Mapping[str, Any], key: str) -> Any:
    for name in (key, *_OTHER_NAMES.get(key, ())):
        if config.get(name) is not None:
            return config[name]
    return None


def _facts(
    model_id: str, config: Mapping[str, Any], text: Mapping[str, Any], tensors: TensorSummary | None
) -> dict[str, Any]:
    family = str(text.get("model_type") or config.get("model_type") or "unknown").removesuffix("_text")
    hidden, heads = int(_get(text, "hidden_size")), int(_get(text, "num_attention_heads"))
    latent = _latent(text)
    head_dim = text.get("head_dim") or hidden // heads
    if latent is not None:
        head_dim = latent["qk_nope_head_dim"] + latent["qk_rope_head_dim"]
    layers = int(_get(text, "num_hidden_layers"))
    kv_layers = _kv_layers(text, layers)
    facts: dict[str, Any] = {
        "id": model_id,
        "family": family,
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": heads if latent is not None else _kv_heads(text, family, heads),
        "head_dim": int(head_dim),
        "intermediate_size": int(_get(text, "intermediate_size") or 4 * hidden),
        "gated_mlp": family not in _UNGATED_FAMILIES,
        "vocab_size": int(_get(text, "vocab_size")),
        "max_position": int(_get(text, "max_position_embeddings") or 2048),
        "tied_embeddings": _tied(config, text, family),
        "dtype": _dtype(config, text),
        "sliding_window": _window(text, layers),
        "kv_layers": kv_layers,
        "experts": _experts(text, layers),
        "latent_attention": latent,
        "checkpoint": checkpoint_from_config(config),
        "tgi_native": family in TGI_NATIVE_FAMILIES,
        "confidence": "high" if tensors else "medium",
        "sources": ("config.json and safetensors headers" if tensors else "config.json",),
    }
    if tensors is not None:
        facts["checkpoint_bytes"] = tensors.total_bytes
    return facts


_TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "cohere", "gpt2", "bloom", "phi4"})


def _tied(config: Mapping[str, Any], text: Mapping[str, Any], family: str) -> bool:
    stated = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return family in _TIED_BY_DEFAULT if stated is None else bool(stated)


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    name = text.get("torch_dtype") or config.get("torch_dtype") or text.get("dtype") or config.get("dtype")
    return str(name) if name in ("float16", "bfloat16", "float32") else "bfloat16"


def _kv_heads(text: Mapping[str, Any], family: str, heads: int) -> int:
    if text.get("multi_query") and not text.get("new_decoder_architecture") and family != "chatglm":
        return 1
    stated = _get(text, "num_key_value_heads")
    return int(stated) if stated is not None else heads


def _window(text: Mapping[str, Any], layers: int) -> dict[str, int] | None:
    window = text.get("sliding_window") or text.get("attention_chunk_size")
    if not isinstance(window, int) or text.get("use_sliding_window") is False:
        return None
    types = text.get("layer_types")
    if isinstance(types, list):
        full = sum(kind == "full_attention" for kind in types)
    elif text.get("sliding_window_pattern"):
        full = layers // int(text["sliding_window_pattern"])
    elif text.get("model_type") == "gemma2":
        full = layers // 2
    elif text.get("attention_chunk_size"):
        full = layers // 4
    else:
        full = 0
    return {"window": window, "full_attention_layers": full}


def _kv_layers(text: Mapping[str, Any], layers: int) -> int | None:
    types = text.get("layer_types")
    if isinstance(types, list) and any("linear" in str(kind) for kind in types):
        return sum(str(kind) == "full_attention" for kind in types)
    interval = text.get("full_attention_interval")
    return layers // int(interval) if interval else None


def _experts(text: Mapping[str, Any], layers: int) -> dict[str, Any] | None:
    count = text.get("n_routed_experts") or text.get("num_local_experts") or text.get("num_experts")
    if not count or int(count) < 2:
        return None
    width = int(text.get("moe_intermediate_size") or _get(text, "intermediate_size") or 0)
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    shared = shared or int(text.get("n_shared_experts") or 0) * width
    dense_layers = int(text.get("first_k_dense_replace") or 0)
    dense_width = int(_get(text, "intermediate_size") or width)
    step = text.get("interleave_moe_layer_step")
    if text.get("model_type") in ("llama4", "llama4_text"):
        shared = width
        dense_width = int(text.get("intermediate_size_mlp") or dense_width)
        dense_layers = layers - layers // int(step or 1)
    return {
        "count": int(count),
        "active": int(text.get("num_experts_per_tok") or text.get("experts_per_token") or 1),
        "intermediate_size": width,
        "shared_intermediate_size": shared,
        "dense_layers": dense_layers,
        "dense_intermediate_size": dense_width if dense_layers else 0,
        "bias": text.get("model_type") == "gpt_oss",
    }


def _latent(text: Mapping[str, Any]) -> dict[str, Any] | None:
    if not text.get("kv_lora_rank") or not text.get("qk_rope_head_dim"):
        return None
    return {
        "kv_lora_rank": int(text["kv_lora_rank"]),
        "q_lora_rank": int(text["q_lora_rank"]) if text.get("q_lora_rank") else None,
        "qk_rope_head_dim": int(text["qk_rope_head_dim"]),
        "qk_nope_head_dim": int(text.get("qk_nope_head_dim") or 128),
        "v_head_dim": int(text.get("v_head_dim") or 128),
    }
