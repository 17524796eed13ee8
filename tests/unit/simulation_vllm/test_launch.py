import re

import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.engines.base import BatchSettings, EngineSettings
from trimtab.engines.vllm import VllmEngine
from trimtab.simulation.command import StartupError
from trimtab.simulation.vllm.launch import launch, parse_command

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def start(text: str, gpu: str = "A100-80GB", **env: str):
    catalogue = load_catalogue()
    arguments = parse_command([MODEL, *text.split()], env)
    return launch(arguments, env, catalogue.find_model(MODEL).model, catalogue.gpu(gpu))


def refusal(text: str, gpu: str = "A100-80GB", **env: str) -> StartupError:
    with pytest.raises(StartupError) as caught:
        start(text, gpu, **env)
    return caught.value


def test_what_trimtab_renders_is_what_the_server_runs_with():
    catalogue = load_catalogue()
    settings = EngineSettings(
        model_id=MODEL,
        max_total_tokens=4096,
        kv_cache_dtype="fp8_e4m3fn",
        gpus_per_replica=2,
        memory_fraction=0.8,
        batching=BatchSettings(max_batch_size=96, max_batch_prefill_tokens=2048),
        env={"VLLM_ATTENTION_BACKEND": "FLASHINFER"},
    )
    model, gpu = catalogue.find_model(MODEL).model, catalogue.gpu("A100-80GB")
    rendered = VllmEngine().launch(settings, model, gpu)
    assert not [finding for finding in rendered.findings if finding.severity == "error"]
    found = launch(parse_command(["serve", *rendered.args], rendered.env), rendered.env, model, gpu)
    engine = found.settings
    assert (found.model_id, found.shards) == (MODEL, 2)
    assert (engine.max_model_len, engine.max_num_seqs, engine.max_num_batched_tokens) == (4096, 96, 2048)
    half = start("--tensor-parallel-size 2 --max-model-len 4096 --gpu-memory-utilization 0.8 --max-num-seqs 96")
    assert engine.num_gpu_blocks == pytest.approx(2 * half.settings.num_gpu_blocks, rel=0.01), "keys are half as large"


def test_defaults_depend_on_the_card():
    small, large = start(""), start("", "H100-SXM")
    assert (small.settings.max_num_batched_tokens, small.settings.max_num_seqs) == (2048, 256)
    assert (large.settings.max_num_batched_tokens, large.settings.max_num_seqs) == (8192, 1024)
    assert small.settings.max_model_len == small.model.max_position


def test_memory_decides_the_number_of_blocks():
    full, half = start("--max-model-len 4096"), start("--max-model-len 4096 --gpu-memory-utilization 0.5")
    gained = (full.settings.num_gpu_blocks - half.settings.num_gpu_blocks) * 16 * 131072
    assert gained == pytest.approx(0.4 * full.gpu.memory_bytes, rel=0.001), "128 KiB a token"
    assert start("--max-model-len 4096 --num-gpu-blocks-override 300").settings.num_gpu_blocks == 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("--max-num-seqs many", "argument --max-num-seqs: invalid value"),
        ("--max-num-seqs", "argument --max-num-seqs: expected one argument"),
        ("--kv-cache-dtype int3", "argument --kv-cache-dtype: invalid value"),
    ],
)
def test_wrong_flags_are_usage_errors(text, said):
    error = refusal(text)
    assert error.code == 2
    assert said in str(error)


@pytest.mark.parametrize(
    ("text", "gpu", "said"),
    [
        ("--max-model-len 200000", "A100-80GB", "greater than the derived max_model_len"),
        ("--max-num-batched-tokens 64 --max-num-seqs 128", "A100-80GB", "must be greater than or equal"),
        ("--no-enable-chunked-prefill --max-num-batched-tokens 512", "A100-80GB", "smaller than max_model_len"),
        ("", "L4", "max seq len"),
        ("--gpu-memory-utilization 0.1", "A100-80GB", "No available memory for the cache blocks"),
        ("", "T4", "CUDA out of memory"),
        ("--tensor-parallel-size 3", "A100-80GB", "cannot be divided"),
        ("--quantization awq", "A100-80GB", "awq"),
    ],
)
def test_what_cannot_run_ends_with_code_1_and_a_reason_that_the_operator_knows(text, gpu, said):
    error = refusal(text, gpu)
    assert error.code == 1
    assert said in str(error)
    assert any(re.search(known.pattern, str(error)) for known in VllmEngine().failures)
