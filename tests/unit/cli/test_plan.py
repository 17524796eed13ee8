"""`trimtab plan` as a person runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from trimtab.cli.main import VERBS, main

MANIFEST = """
apiVersion: v1
kind: Namespace
metadata: {name: chat}
---
apiVersion: trimtab.dev/v1alpha1
kind: LLMDeployment
metadata: {name: chat}
spec:
  model: {id: Qwen/Qwen2.5-7B-Instruct}
  hardware: {gpuProducts: [L4, A10G]}
  slo: {tpot: {p95: 80ms}}
"""
CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def run(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["plan", *args], input=stdin)


def document(result: Result) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "chat.yaml"
    path.write_text(MANIFEST)
    return str(path)


def test_a_choice_is_printed_and_exits_0(manifest: str) -> None:
    result = run(manifest, "-o", "json")
    assert result.exit_code == 0
    answer = document(result)
    assert answer["chosen"]["gpu"] in ("L4", "A10G")
    assert answer["chosen"]["tpotMs"] <= 80
    assert answer["options"][0] == answer["chosen"]
    assert answer["errors"] == []


def test_yaml_says_the_same(manifest: str) -> None:
    assert yaml.safe_load(run(manifest, "-o", "yaml").stdout) == document(run(manifest, "-o", "json"))


def test_the_table_names_the_choice_and_the_reasons(manifest: str) -> None:
    result = run(manifest)
    assert result.exit_code == 0
    for words in ("Qwen/Qwen2.5-7B-Instruct", "--model-id", "chosen", "why not"):
        assert words in result.stdout


def test_flags_alone_are_enough_and_overrule_the_file(manifest: str) -> None:
    flags = ("--quantization", "none", "--gpu", "A100-80GB", "--gpus", "2", "--slo-ttft", "p50=1s,p99=4s")
    alone = run("--model", "Qwen/Qwen2.5-7B-Instruct", *flags, "--slo-tpot", "0.08", "-o", "json")
    over = run(manifest, *flags, "-o", "json")
    assert document(alone)["chosen"] == document(over)["chosen"]
    assert document(alone)["chosen"]["gpusPerReplica"] == 2
    assert document(alone)["chosen"]["quantization"] == "none"


def test_a_manifest_may_come_from_standard_input(manifest: str) -> None:
    assert document(run("-", "-o", "json", stdin=MANIFEST)) == document(run(manifest, "-o", "json"))


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--model", "Qwen/Qwen2.5-7B-Instruct", "--engine", "nginx"], "spec.engine.type"),
        (["--model", "Qwen/Qwen2.5-7B-Instruct", "--gpu", "L5"], "spec.hardware.gpuProducts"),
        (["--model", "Qwen/Qwen2.5-7B-Instruct", "--quantization", "int3"], "spec.quantization"),
        (["--model", "Qwen/Qwen2.5-7B-Instruct", "--slo-tpot", "p42=1s"], "spec.slo.tpot"),
        (["--model", "Qwen/Qwen2.5-7B-Instruct", "--slo-tpot", "fast"], "spec.slo.tpot.p95"),
        (["--model", "acme/unheard-of"], "spec.model.id"),
        ([], "spec.model.id"),
        (["/no/such/file"], "FILE"),
        (["--model-config", "/no/such/file"], "model-config"),
        (
            ["--model", "Qwen/Qwen2.5-7B-Instruct", "--max-input-tokens", "9", "--max-total-tokens", "8"],
            "spec.context.maxInputTokens",
        ),
    ],
)
def test_an_invalid_spec_exits_2_and_names_the_field(args: list[str], field: str) -> None:
    result = run(*args, "-o", "json")
    assert result.exit_code == 2
    answer = document(result)
    assert answer["chosen"] is None
    assert answer["options"] == []
    assert field in [error["field"] for error in answer["errors"]]
    assert all(set(error) == {"field", "value", "message", "allowed"} for error in answer["errors"])


def test_when_nothing_fits_it_exits_3_with_the_nearest() -> None:
    flags = ("--model", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "L4", "--gpus", "1", "--quantization", "none")
    result = run(*flags, "-o", "json")
    assert result.exit_code == 3
    answer = document(result)
    assert answer["chosen"] is None
    assert answer["options"]
    assert not any(option["fits"] for option in answer["options"])
    suggested = {error["field"]: error["allowed"] for error in answer["errors"]}
    assert "spec.hardware.gpusPerReplica" in suggested
    assert run(*flags).exit_code == 3


def test_a_config_json_is_enough(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    by_file = document(run("--model-config", str(config), "--model", "own/model", "--gpu", "L4", "-o", "json"))
    listed = document(run("--model", "meta-llama/Meta-Llama-3-8B", "--gpu", "L4", "-o", "json"))
    assert by_file["chosen"]["model"] == "own/model"
    assert by_file["chosen"]["kvTokens"] == listed["chosen"]["kvTokens"]


def test_a_folder_with_weights_gives_their_exact_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"layer": {"dtype": "BF16", "shape": [8, 10**9], "data_offsets": [0, 16 * 10**9]}}
    header = json.dumps(tensors).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    args = ("--gpu", "A100-80GB", "--gpus", "1", "--quantization", "none", "-o", "json")
    answer = document(run("--model-config", str(tmp_path), *args))
    assert answer["chosen"]["model"] == tmp_path.name
    assert answer["chosen"]["weightsBytes"] == pytest.approx(16e9, rel=0.02)


def test_additions_to_the_catalogue_are_used_and_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    gpu = {"id": "X1", "memory_gib": 100, "bandwidth_gb_s": 3000, "fp16_tflops": 500, "bf16_tflops": 500,
           "compute_capability": 9.0, "sources": ["data sheet"]}  # fmt: skip
    good.write_text(yaml.safe_dump({"gpus": [gpu]}))
    bad.write_text(yaml.safe_dump({"gpus": [{**gpu, "memory_gib": "lots"}]}))
    flags = ("--model", "Qwen/Qwen2.5-7B-Instruct", "--gpu", "X1", "-o", "json")
    assert document(run(*flags, "--catalogue", str(good)))["chosen"]["gpu"] == "X1"
    refused = run(*flags, "--catalogue", str(bad))
    assert refused.exit_code == 2
    assert [error["field"] for error in document(refused)["errors"]] == ["gpus.0.memory_gib"]


def test_every_verb_is_described() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name, _ in VERBS)
    assert CliRunner().invoke(main, ["dance"]).exit_code == 2
