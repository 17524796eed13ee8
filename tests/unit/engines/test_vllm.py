"""vLLM behind the same interface: command line, rules, facts."""

import json

import pytest

from trimtab.catalog.flags import load_flags
from trimtab.engines.base import BatchSettings, EngineSettings, MetricKind, Severity, Signal
from trimtab.engines.registry import ENGINES, get_engine
from trimtab.engines.vllm import FORBIDDEN, RESERVED, VllmEngine

from .conftest import make_gpu, make_model, quantized

T4 = make_gpu(id="T4", compute_capability=7.5)
P100 = make_gpu(id="P100", compute_capability=6.0)
H100 = make_gpu(id="H100", compute_capability=9.0)
B200 = make_gpu(id="B200", compute_capability=10.0)
MI300X = make_gpu(id="MI300X", vendor="amd", resource="amd.com/gpu", compute_capability=None)


@pytest.fixture
def vllm() -> VllmEngine:
    return VllmEngine()


def settings(**changes):
    batching = BatchSettings(**changes.pop("batching", {}))
    return EngineSettings(**({"model_id": "acme/llama-8b", "batching": batching} | changes))


def test_every_setting_reaches_the_command_line(vllm, model):
    wanted = settings(
        revision="abc",
        quantization="fp8",
        dtype="bfloat16",
        kv_cache_dtype="fp8_e4m3fn",
        gpus_per_replica=4,
        max_input_tokens=4000,
        max_total_tokens=5000,
        batching={"max_batch_size": 16, "max_batch_prefill_tokens": 8192, "prefill_chunking": True},
        memory_fraction=0.8,
        prefix_caching=False,
        speculate=3,
        trust_remote_code=True,
    )
    launch = vllm.launch(wanted, model, H100)
    assert launch.errors == ()
    assert launch.args[0] == "acme/llama-8b"
    assert launch.args[1:] == (
        *("--revision", "abc"),
        *("--tensor-parallel-size", "4"),
        *("--port", "8000"),
        *("--quantization", "fp8"),
        *("--dtype", "bfloat16"),
        *("--kv-cache-dtype", "fp8_e4m3"),
        *("--max-model-len", "5000"),
        *("--max-num-seqs", "16"),
        *("--max-num-batched-tokens", "8192"),
        *("--gpu-memory-utilization", "0.8"),
        "--no-enable-prefix-caching",
        "--enable-chunked-prefill",
        *("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'),
        "--trust-remote-code",
    )
    assert launch.env["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_a_checkpoints_own_format_is_not_named_because_that_would_force_slow_kernels(vllm, gpu, method):
    launch = vllm.launch(settings(quantization=method), quantized(method), gpu)
    assert launch.errors == ()
    assert "--quantization" not in launch.args


def test_nf4_is_what_vllm_calls_bitsandbytes(vllm, model, gpu):
    args = vllm.launch(settings(quantization="bitsandbytes-nf4"), model, gpu).args
    assert args[args.index("--quantization") + 1] == "bitsandbytes"


VALUES = {
    "integer": "4",
    "unsigned": "4",
    "number": "0.5",
    "port": "9001",
    "json": '{"a": 1}',
    "boolean": "true",
}
NEEDS = {
    "--enable-auto-tool-choice": ("--tool-call-parser", "hermes"),
    "--enable-log-outputs": ("--enable-log-requests",),
}
PLAIN_HTTP = {"--ssl-keyfile", "--ssl-certfile", "--root-path"}


def test_every_flag_is_reachable_or_refused(vllm, model, gpu):
    for facts in load_flags("vllm").flags:
        value = facts.choices[0] if facts.choices else VALUES.get(facts.type, "value")
        value = "0.0.0.0" if facts.flag == "--host" else value
        extra = (facts.flag, value) if facts.takes_value else (facts.flag,)
        launch = vllm.launch(settings(extra_args=(*extra, *NEEDS.get(facts.flag, ()))), model, gpu)
        if facts.flag in RESERVED or facts.flag in FORBIDDEN or facts.secret or facts.flag in PLAIN_HTTP:
            assert launch.errors, facts.flag
            continue
        assert launch.errors == (), (facts.flag, launch.errors)
        assert facts.flag in launch.args, facts.flag


def test_several_values_parts_of_documents_and_negations(vllm, model, gpu):
    extra = (
        *("--lora-modules", "a=/a", "b=/b"),
        *("--compilation-config.level", "3"),
        "--no-enable-prefix-caching",
        "--no-use-tqdm-on-load",
    )
    wanted = settings(extra_args=extra)
    launch = vllm.launch(wanted, model, gpu)
    assert launch.errors == ()
    assert vllm.understand(wanted).prefix_caching is False
    args = launch.args
    at = args.index("--lora-modules")
    assert args[at : at + 3] == ("--lora-modules", "a=/a", "b=/b")
    assert args[args.index("--compilation-config.level") + 1] == "3"
    assert {"--no-enable-prefix-caching", "--no-use-tqdm-on-load"} <= set(args)


def test_a_json_argument_with_blanks_stays_whole(vllm, model, gpu):
    overrides = json.dumps({"rope_scaling": {"factor": 2.0}})
    launch = vllm.launch(settings(extra_args=("--hf-overrides", overrides)), model, gpu)
    assert launch.errors == ()
    assert overrides in launch.args


REFUSED = [
    pytest.param({"extra_args": ("--max_num_seqs", "8")}, "no flag", id="unknown flag"),
    pytest.param({"extra_args": ("--max-num-seqs", "8")}, "spec.batching.maxBatchSize", id="typed flag"),
    pytest.param({"extra_args": ("--gpu-memory-utilization", "1.2")}, "at most 1", id="fraction above 1"),
    pytest.param({"extra_args": ("--hf-overrides", "{")}, "JSON", id="broken JSON"),
    pytest.param({"extra_args": ("--pipeline-parallel-size", "2")}, "tensor-parallel", id="pipeline stages"),
    pytest.param({"extra_args": ("--api-key", "hunter2")}, "secretKeyRef", id="secret argument"),
    pytest.param({"extra_args": ("--disable-log-stats",)}, "tuner", id="no metrics"),
    pytest.param({"extra_args": ("--enable-auto-tool-choice",)}, "--tool-call-parser", id="missing partner"),
    pytest.param({"extra_args": ("--host", "127.0.0.1")}, "all addresses", id="loopback"),
    pytest.param({"extra_args": ("--ssl-keyfile", "/k")}, "plain HTTP", id="TLS"),
    pytest.param({"env": {"VLLM_SERVER_DEV_MODE": "1"}}, "any client", id="development routes"),
    pytest.param({"env": {"VLLM_USE_V1": "0"}}, "VLLM_USE_V1=0", id="engine that is gone"),
    pytest.param({"batching": {"waiting_served_ratio": 1.0}}, "means nothing", id="setting of TGI"),
    pytest.param({"batching": {"max_batch_total_tokens": 9}}, "means nothing", id="another setting of TGI"),
    pytest.param(
        {"batching": {"max_batch_size": 256, "max_batch_prefill_tokens": 128}}, "at least 256", id="budget below batch"
    ),
    pytest.param(
        {"max_total_tokens": 4096, "batching": {"max_batch_prefill_tokens": 2048, "prefill_chunking": False}},
        "at least 4096",
        id="budget below context without chunks",
    ),
    pytest.param({"max_input_tokens": 9, "max_total_tokens": 9}, "at most 8", id="no answer fits"),
    pytest.param({"model_id": "/models/x", "revision": "main"}, "no revisions", id="revision of a folder"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_refuses(vllm, model, gpu, changes, words):
    launch = vllm.launch(settings(**changes), model, gpu)
    sentences = " | ".join(finding.sentence() for finding in launch.errors)
    assert words in sentences
    assert "hunter2" not in sentences


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra_args": ("--enforce-eager",)}, "CUDA graphs"),
        ({"trust_remote_code": True}, "runs code"),
        ({"secret_env": frozenset({"VLLM_API_KEY"})}, "gateway"),
    ],
)
def test_warns(vllm, model, gpu, changes, words):
    launch = vllm.launch(settings(**changes), model, gpu)
    assert launch.errors == ()
    assert words in " | ".join(
        finding.sentence() for finding in launch.findings if finding.severity is Severity.WARNING
    )


IMPOSSIBLE = [
    pytest.param("eetq", make_model(), H100, 1, "no quantization eetq", id="TGI's own format"),
    pytest.param("exl2", quantized("exl2"), H100, 1, "no quantization exl2", id="EXL2"),
    pytest.param("none", make_model(), P100, 1, "7.0", id="old GPU"),
    pytest.param("fp8", make_model(), T4, 1, "8.0", id="FP8 on Turing"),
    pytest.param("bitsandbytes", make_model(), H100, 1, "16-bit", id="8 bits on the fly"),
    pytest.param("bitsandbytes-nf4", make_model(), MI300X, 1, "no kernels", id="NF4 on ROCm"),
    pytest.param("none", make_model(num_heads=28, num_kv_heads=4), H100, 8, "28 attention heads", id="heads"),
    pytest.param("none", make_model(num_heads=40, num_kv_heads=10), H100, 4, "10 key-value heads", id="KV heads"),
]


@pytest.mark.parametrize(("quantization", "model", "gpu", "shards", "words"), IMPOSSIBLE)
def test_options_that_cannot_work(vllm, quantization, model, gpu, shards, words):
    problem = vllm.option_problem(settings(quantization=quantization, gpus_per_replica=shards), model, gpu)
    assert problem is not None
    assert words in problem


@pytest.mark.parametrize(
    ("quantization", "model", "gpu", "shards"),
    [
        ("none", make_model(tgi_native=False), H100, 8),
        ("none", make_model(num_heads=32, num_kv_heads=4), H100, 8),
        ("fp8", quantized("fp8-block", 8), B200, 8),
        ("mxfp4", quantized("mxfp4", 4), H100, 1),
        ("awq", quantized("awq"), T4, 2),
        ("gptq", quantized("gptq", 8), MI300X, 1),
    ],
)
def test_options_that_work(vllm, quantization, model, gpu, shards):
    assert vllm.option_problem(settings(quantization=quantization, gpus_per_replica=shards), model, gpu) is None


def test_an_fp8_kv_cache_needs_an_attention_that_has_it(vllm, model, gpu):
    e4m3, e5m2 = settings(kv_cache_dtype="fp8_e4m3fn"), settings(kv_cache_dtype="fp8_e5m2")
    flashinfer = {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}
    assert "FLASHINFER" in vllm.option_problem(e4m3, model, gpu)
    assert "fp8_e4m3fn only" in vllm.option_problem(e5m2, model, H100)
    assert vllm.option_problem(e4m3, model, H100) is None
    assert vllm.option_problem(settings(kv_cache_dtype="fp8_e5m2", env=flashinfer), model, gpu) is None


def test_images(vllm):
    assert vllm.image(H100).endswith(":v0.11.0")
    assert "rocm" in vllm.image(MI300X)


def test_the_hook_drains_because_vllm_does_not(vllm):
    drain = vllm.drain(settings())
    assert drain.graceful_seconds >= 60
    assert drain.termination_grace_seconds == drain.pre_stop_seconds + drain.graceful_seconds + drain.stop_seconds


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_what_every_engine_must_have(name, model, gpu):
    engine = get_engine(name)
    assert engine.name == name
    assert engine.quantizations["none"].problem(model, gpu, 1) is None
    assert all(rule.name == key for key, rule in engine.quantizations.items())
    assert all(rule.on_the_fly or rule.checkpoint_methods for rule in engine.quantizations.values())
    assert {
        Signal.QUEUE_SIZE,
        Signal.RUNNING,
        Signal.REQUESTS_SUCCEEDED,
        Signal.GENERATED_TOKENS,
    } <= engine.metrics.keys()
    assert all(metric.kind in MetricKind for metric in engine.metrics.values())
    assert engine.image(gpu).count(":") == 1
    assert not engine.image(gpu).endswith("latest")
    assert engine.launch(settings(), model, gpu).errors == ()
    assert engine.understand(settings()) == settings()
    assert engine.kv_block_tokens(settings(), model, gpu) >= 1
    assert engine.chunks_prompts(settings(), model, gpu) is True


def test_unknown_engines_are_named():
    with pytest.raises(KeyError, match="known are tgi, vllm"):
        get_engine("llama.cpp")


def test_a_switch_that_is_set_in_both_forms_is_refused(vllm, model, gpu):
    both = settings(prefix_caching=False, extra_args=("--enable-prefix-caching",))
    assert any("already set" in finding.message for finding in vllm.launch(both, model, gpu).errors)
