"""Model facts from a repository's own files."""

import json

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.hf_config import checkpoint_from_config, model_from_config
from trimtab.catalog.parameters import count_parameters
from trimtab.catalog.safetensors import HeaderError, header_length, parse_header, summarize

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MAVERICK = {
    "model_type": "llama4",
    "text_config": {
        "attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120, "interleave_moe_layer_step": 2,
        "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 1048576,
        "model_type": "llama4_text", "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
        "num_key_value_heads": 8, "num_local_experts": 128, "torch_dtype": "bfloat16", "vocab_size": 202048,
    },
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "first_k_dense_replace": 3, "hidden_size": 7168, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "config"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", LLAMA),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", MAVERICK),
        ("deepseek-ai/DeepSeek-V3", DEEPSEEK),
    ],
)
def test_a_config_gives_the_same_facts_as_the_catalogue(listed: str, config: dict[str, object]) -> None:
    known = load_catalogue().model(listed)
    assert known is not None
    read = model_from_config(listed, config)
    assert count_parameters(read) == count_parameters(known)
    same = ("num_kv_heads", "head_dim", "max_position", "tied_embeddings", "checkpoint", "latent_attention", "experts")
    for name in (*same, "sliding_window", "tgi_native"):
        assert getattr(read, name) == getattr(known, name), name


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InvalidSpecError) as refused:
        model_from_config("a/b", {"model_type": "llama", "hidden_size": 4096, "vocab_size": "many"})
    assert {error.field for error in refused.value.errors} == {
        "config.json.num_hidden_layers", "config.json.num_attention_heads", "config.json.vocab_size",
    }  # fmt: skip


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InvalidSpecError, match="multiple of num_kv_heads"):
        model_from_config("a/b", LLAMA | {"num_key_value_heads": 5})


@pytest.mark.parametrize(
    ("stored", "method", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, "gptq", 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "awq", 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4),
        ({"quant_method": "mxfp4"}, "mxfp4", 4),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "int", "symmetric": True},
                        "input_activations": {"num_bits": 8},
                    }
                },
            },
            "compressed-tensors",
            8,
        ),
    ],
)
def test_stored_quantization_is_recognised(stored: dict[str, object], method: str, bits: int) -> None:
    checkpoint = checkpoint_from_config({"quantization_config": stored})
    assert checkpoint is not None
    assert (checkpoint.method, checkpoint.bits) == (method, bits)


def test_layers_left_out_of_fp8_are_counted() -> None:
    left_out = [f"model.layers.{n}.self_attn.q_proj" for n in range(4)]
    left_out += ["model.layers.0.mlp.down_proj", "model.layers.3.mlp.down_proj"]
    checkpoint = checkpoint_from_config(
        {"quantization_config": {"quant_method": "fbgemm_fp8", "modules_to_not_convert": left_out}}
    )
    assert checkpoint is not None
    assert checkpoint.unquantized_attention
    assert checkpoint.unquantized_layers == 2


def _file(tensors: dict[str, object]) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header


def test_headers_give_the_exact_size_of_the_weights() -> None:
    first = _file(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]},
            "b": {"dtype": "I32", "shape": [4], "data_offsets": [64, 80]},
        }
    )
    length = header_length(first[:8])
    summary = summarize([parse_header(first[8 : 8 + length])])
    assert summary.total_bytes == 80
    assert summary.bytes_by_dtype == {"BF16": 64, "I32": 16}
    assert summary.tensors == 2


@pytest.mark.parametrize("start", [b"", b"\x00" * 8, b"\xff" * 8])
def test_other_files_are_not_mistaken_for_safetensors(start: bytes) -> None:
    with pytest.raises(HeaderError):
        header_length(start)
