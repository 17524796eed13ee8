"""What Text Generation Inference rejects, crashes on or ignores is said before any pod exists."""

from dataclasses import replace

import pytest

from trimtab.engines.base import BatchSettings, EngineSettings, Severity

from .conftest import make_gpu, make_model, quantized

T4 = make_gpu(id="T4", compute_capability=7.5)
V100 = make_gpu(id="V100", compute_capability=7.0)
B200 = make_gpu(id="B200", compute_capability=10.0)
MI300X = make_gpu(id="MI300X", vendor="amd", resource="amd.com/gpu", compute_capability=None)
HEAD_80 = make_model(id="acme/phi-2", head_dim=80, num_kv_heads=32)
UNKNOWN = make_model(id="acme/new", tgi_native=False)


def settings(**changes):
    batching = BatchSettings(**changes.pop("batching", {}))
    return EngineSettings(**({"model_id": "acme/llama-8b", "batching": batching} | changes))


def found(launch, severity):
    return {(finding.field, finding.sentence()) for finding in launch.findings if finding.severity is severity}


REFUSED = [
    pytest.param({"extra_args": ("--foo", "1")}, "extraArgs", "no flag --foo", id="unknown flag"),
    pytest.param({"extra_args": ("--max-batch", "1")}, "extraArgs", "--max-batch-size", id="names the nearest flags"),
    pytest.param({"extra_args": ("stray",)}, "extraArgs", "is no flag", id="value without a flag"),
    pytest.param({"extra_args": ("--max-best-of", "many")}, "extraArgs", "whole number", id="wrong type"),
    pytest.param({"extra_args": ("--max-best-of",)}, "extraArgs", "needs a value", id="missing value"),
    pytest.param({"extra_args": ("--json-output=true",)}, "extraArgs", "takes no value", id="switch with a value"),
    pytest.param({"extra_args": ("--dtype", "float32")}, "extraArgs", "float16, bfloat16", id="not a choice"),
    pytest.param({"extra_args": ("--validation-workers", "0")}, "extraArgs", "at least 1", id="no workers"),
    pytest.param({"extra_args": ("--cuda-memory-fraction", "1.5")}, "extraArgs", "at most 1", id="fraction above 1"),
    pytest.param({"extra_args": ("-p", "80")}, "extraArgs", "short for --port", id="ambiguous short name"),
    pytest.param({"extra_args": ("--port", "80")}, "extraArgs", "is fixed", id="another port"),
    pytest.param({"extra_args": ("--max-batch-size", "8")}, "extraArgs", "spec.batching.maxBatchSize", id="typed flag"),
    pytest.param({"extra_args": ("--max-input-length", "8")}, "extraArgs", "spec.context.maxInputTokens", id="legacy"),
    pytest.param({"extra_args": ("--sharded", "true")}, "extraArgs", "gpusPerReplica", id="sharded"),
    pytest.param({"extra_args": ("--max-best-of", "2", "--max-best-of=3")}, "extraArgs", "already set", id="twice"),
    pytest.param(
        {"extra_args": ("--max-best-of", "2"), "env": {"MAX_BEST_OF": "3"}},
        "env",
        "write it once",
        id="also a variable",
    ),
    pytest.param({"extra_args": ("--ngrok",)}, "extraArgs", "panic", id="ngrok"),
    pytest.param({"extra_args": ("--ngrok-edge", "x")}, "extraArgs", "panic", id="ngrok edge"),
    pytest.param({"env": {"NGROK": "true"}}, "env", "panic", id="ngrok by variable"),
    pytest.param({"extra_args": ("--api-key", "hunter2")}, "extraArgs", "secretKeyRef", id="secret argument"),
    pytest.param({"env": {"API_KEY": "hunter2"}}, "env", "secretKeyRef", id="secret in a plain variable"),
    pytest.param({"env": {"HF_TOKEN": "hf_x"}}, "env", "tokenSecretRef", id="token in a plain variable"),
    pytest.param({"secret_env": frozenset({"HF_API_TOKEN"})}, "env", "overrides", id="token that overrides"),
    pytest.param({"env": {"JSON_OUTPUT": "True"}}, "env", "lower case", id="boolean variable with a capital"),
    pytest.param({"env": {"JSON_OUTPUT": "1"}}, "env", "lower case", id="boolean variable as a number"),
    pytest.param({"env": {"OTLP_ENDPOINT": ""}}, "env", "empty", id="empty variable"),
    pytest.param({"env": {"QUANTIZE": "awq"}}, "env", "spec.quantization", id="typed flag by variable"),
    pytest.param({"env": {"CUDA_VISIBLE_DEVICES": "0"}}, "env", "device plugin", id="devices by hand"),
    pytest.param({"env": {"PREFIX_CACHING": "yes"}}, "env", "0, 1, true", id="prefix caching word"),
    pytest.param({"env": {"TGI_WIGGLE_ROOM": "1"}}, "env", "below 1", id="wiggle room of everything"),
    pytest.param({"max_input_tokens": 10, "max_total_tokens": 10}, "maxInputTokens", "less than", id="no answer fits"),
    pytest.param(
        {"max_total_tokens": 4000, "max_input_tokens": 3000, "batching": {"max_batch_total_tokens": 2000}},
        "maxTotalTokens",
        "maxBatchTotalTokens",
        id="request larger than a batch",
    ),
    pytest.param(
        {"max_total_tokens": 2048, "batching": {"max_batch_prefill_tokens": 4096}},
        "maxBatchPrefillTokens",
        "Set context.maxInputTokens",
        id="warm-up would wrap",
    ),
    pytest.param(
        {"max_input_tokens": 4096, "batching": {"max_batch_prefill_tokens": 2048, "prefill_chunking": False}},
        "maxBatchPrefillTokens",
        "at least 4096",
        id="prompt longer than the prefill budget without chunks",
    ),
    pytest.param(
        {"max_input_tokens": 4096, "speculate": 2, "batching": {"max_batch_prefill_tokens": 2048}},
        "maxBatchPrefillTokens",
        "speculation",
        id="speculation switches chunks off",
    ),
    pytest.param({"quantization": "eetq", "dtype": "float16"}, "extraArgs", "cannot be combined", id="dtype and eetq"),
    pytest.param({"quantization": "int3"}, "spec.quantization", "no quantization int3", id="unknown quantization"),
    pytest.param(
        {"env": {"ATTENTION": "paged", "PREFIX_CACHING": "1"}}, "env", "prefix caching needs", id="paged prefix cache"
    ),
    pytest.param({"env": {"ATTENTION": "flashdecoding-ipex"}}, "env", "nvidia", id="attention of another vendor"),
    pytest.param({"env": {"USE_FLASH_ATTENTION": "false"}}, "env", "padded", id="flash attention off"),
    pytest.param(
        {"kv_cache_dtype": "fp8_e4m3fn", "env": {"ATTENTION": "flashdecoding"}},
        "quantization",
        "flashinfer or paged",
        id="FP8 KV cache on flashdecoding",
    ),
    pytest.param({"model_id": "/models/x", "revision": "main"}, "revision", "local folder", id="revision of a folder"),
    pytest.param({"extra_args": ("--hostname", "127.0.0.1")}, "extraArgs", "all addresses", id="loopback only"),
    pytest.param({"extra_args": ("--prometheus-port", "8080")}, "extraArgs", "sidecar", id="port of the sidecar"),
    pytest.param({"extra_args": ("--lora-adapters", "a@b@c")}, "extraArgs", "is no adapter", id="adapter syntax"),
    pytest.param(
        {"extra_args": ("--cors-allow-origin", "a b", "--cors-allow-origin", "c d")},
        "extraArgs",
        "splits arguments",
        id="two values with blanks",
    ),
]


@pytest.mark.parametrize(("changes", "field", "words"), REFUSED)
def test_refuses(tgi, model, gpu, changes, field, words):
    launch = tgi.launch(settings(**changes), model, gpu)
    errors = found(launch, Severity.ERROR)
    assert any(field in where and words in sentence for where, sentence in errors), errors


WARNED = [
    pytest.param({"batching": {"max_batch_total_tokens": 9000}}, "maxBatchTotalTokens", "ignored", id="batch total"),
    pytest.param({"batching": {"waiting_served_ratio": 0.3}}, "waitingServedRatio", "ignored", id="served ratio"),
    pytest.param({"batching": {"max_waiting_tokens": 20}}, "maxWaitingTokens", "ignored", id="waiting tokens"),
    pytest.param({"batching": {"max_batch_size": 8}}, "maxBatchSize", "maxInFlight", id="batch size"),
    pytest.param(
        {"batching": {"max_batch_size": 64, "max_concurrent_requests": 32}},
        "maxConcurrentRequests",
        "never fill",
        id="fewer requests than the batch",
    ),
    pytest.param({"speculate": 2}, "extraArgs", "chunked prompts off", id="speculation"),
    pytest.param({"quantization": "bitsandbytes"}, "spec.quantization", "eetq", id="deprecated quantization"),
    pytest.param({"extra_args": ("--lora-adapters", "a")}, "extraArgs", "prefix caching off", id="adapters"),
    pytest.param({"extra_args": ("--trust-remote-code",)}, "extraArgs", "runs code", id="remote code"),
    pytest.param({"extra_args": ("--env",)}, "extraArgs", "log", id="environment report"),
    pytest.param({"extra_args": ("--enable-prefill-logprobs",)}, "extraArgs", "memory", id="prompt logprobs"),
    pytest.param({"extra_args": ("--rope-scaling", "linear")}, "extraArgs", "no effect", id="scaling without factor"),
    pytest.param({"extra_args": ("--huggingface-hub-cache", "/x")}, "extraArgs", "HF_HOME", id="hub cache"),
    pytest.param({"secret_env": frozenset({"API_KEY"})}, "env", "clear text", id="API key"),
    pytest.param({"speculate": 1, "batching": {"prefill_chunking": True}}, "env", "no effect", id="vain chunking"),
]


@pytest.mark.parametrize(("changes", "field", "words"), WARNED)
def test_warns(tgi, model, gpu, changes, field, words):
    launch = tgi.launch(settings(**changes), model, gpu)
    assert launch.errors == ()
    warnings = found(launch, Severity.WARNING)
    assert any(field in where and words in sentence for where, sentence in warnings), warnings


def test_batching_that_is_ignored_with_chunks_counts_without_them(tgi, model, gpu):
    fixed = settings(batching={"max_batch_size": 8, "waiting_served_ratio": 1.0, "prefill_chunking": False})
    assert tgi.launch(fixed, model, gpu).findings == ()


def test_a_padded_model_honours_the_batch_total(tgi, gpu):
    padded = settings(model_id=UNKNOWN.id, batching={"max_batch_total_tokens": 9000})
    assert tgi.launch(padded, UNKNOWN, gpu).findings == ()


def test_a_secret_is_never_repeated_in_a_finding(tgi, model, gpu):
    written = settings(extra_args=("--api-key", "hunter2"), env={"NGROK_AUTHTOKEN": "hunter3", "API_KEY": "hunter2"})
    launch = tgi.launch(written, model, gpu)
    assert len(launch.errors) == 3
    assert "hunter" not in " ".join(finding.sentence() for finding in launch.findings)


IMPOSSIBLE = [
    pytest.param("awq", quantized("awq"), T4, 1, "8.0", id="AWQ below 8.0"),
    pytest.param("awq", quantized("awq"), MI300X, 1, "no kernels", id="AWQ on ROCm"),
    pytest.param("fp8", make_model(), T4, 1, "8.0", id="FP8 below 8.0"),
    pytest.param("gptq", make_model(), None, 1, "16-bit weights", id="GPTQ of a 16-bit checkpoint"),
    pytest.param("none", quantized("gptq"), None, 1, "stored as gptq", id="none of a quantized checkpoint"),
    pytest.param("eetq", quantized("awq"), None, 1, "stored as awq", id="EETQ of a quantized checkpoint"),
    pytest.param("gptq", quantized("awq"), None, 1, "use quantization awq", id="AWQ called GPTQ"),
    pytest.param("bitsandbytes", quantized("bitsandbytes"), None, 1, "8 bits", id="4-bit bitsandbytes checkpoint"),
    pytest.param("fp8", quantized("fp8-block", 8), None, 1, "fp8-block", id="block-wise FP8"),
    pytest.param("exl2", quantized("exl2"), None, 2, "one GPU", id="EXL2 on two GPUs"),
    pytest.param("awq", quantized("awq", tgi_native=False), None, 1, "transformers", id="AWQ through transformers"),
    pytest.param("none", make_model(num_heads=71, num_kv_heads=71), None, 2, "71 attention heads", id="odd heads"),
    pytest.param("none", make_model(num_heads=40, num_kv_heads=10), None, 4, "10 key-value heads", id="odd KV heads"),
    pytest.param("none", UNKNOWN, None, 2, "one GPU", id="transformers on two GPUs"),
    pytest.param("none", make_model(), B200, 1, "9.0", id="Blackwell"),
]


@pytest.mark.parametrize(("quantization", "model", "gpu", "shards", "words"), IMPOSSIBLE)
def test_options_that_cannot_work(tgi, quantization, model, gpu, shards, words):
    wanted = settings(quantization=quantization, gpus_per_replica=shards)
    problem = tgi.option_problem(wanted, model, gpu or make_gpu())
    assert problem is not None
    assert words in problem
    assert tgi.launch(wanted, model, gpu or make_gpu()).errors


POSSIBLE = [
    ("none", make_model(), V100, 1),
    ("none", make_model(num_heads=64, num_kv_heads=1), None, 8),
    ("bitsandbytes-nf4", make_model(), T4, 2),
    ("gptq", quantized("gptq", 3), T4, 1),
    ("gptq", quantized("awq"), MI300X, 1),
    ("fp8", make_model(), MI300X, 4),
    ("fp8", quantized("fbgemm_fp8", 8), None, 8),
    ("compressed-tensors", quantized("compressed-tensors", 8), None, 8),
    ("none", UNKNOWN, None, 1),
]


@pytest.mark.parametrize(("quantization", "model", "gpu", "shards"), POSSIBLE)
def test_options_that_work(tgi, quantization, model, gpu, shards):
    wanted = settings(quantization=quantization, gpus_per_replica=shards)
    assert tgi.option_problem(wanted, model, gpu or make_gpu()) is None


@pytest.mark.parametrize(
    ("model", "gpu", "block"),
    [
        pytest.param(make_model(), make_gpu(), 1, id="flashinfer"),
        pytest.param(HEAD_80, make_gpu(), 256, id="unusual head on Ampere"),
        pytest.param(HEAD_80, T4, 16, id="unusual head on Turing"),
        pytest.param(make_model(family="falcon", head_dim=64), make_gpu(), 256, id="falcon"),
        pytest.param(make_model(), MI300X, 16, id="ROCm"),
    ],
)
def test_attention_backend_decides_the_block_size(tgi, model, gpu, block):
    assert tgi.kv_block_tokens(settings(), model, gpu) == block


def test_an_fp8_kv_cache_follows_the_backend(tgi):
    fp8 = settings(kv_cache_dtype="fp8_e4m3fn")
    assert tgi.option_problem(fp8, make_model(), make_gpu()) is None
    assert "gets flashdecoding" in tgi.option_problem(fp8, HEAD_80, make_gpu())
    assert "transformers" in tgi.option_problem(fp8, UNKNOWN, make_gpu())
    e5m2 = replace(fp8, kv_cache_dtype="fp8_e5m2")
    assert tgi.option_problem(fp8, make_model(), MI300X) is None
    assert "ROCm" in tgi.option_problem(e5m2, make_model(), MI300X)


def test_kv_dtype_is_the_models_unless_the_kernels_force_another(tgi, gpu):
    assert tgi.kv_cache_dtype(settings(), make_model(), gpu) == "bfloat16"
    assert tgi.kv_cache_dtype(settings(quantization="awq"), quantized("awq"), gpu) == "float16"
    assert tgi.kv_cache_dtype(settings(kv_cache_dtype="fp8_e5m2"), make_model(), gpu) == "fp8_e5m2"
    assert tgi.kv_cache_dtype(settings(), make_model(dtype="float32"), gpu) == "float16"


def test_bfloat16_needs_ampere(tgi, model):
    launch = tgi.launch(settings(dtype="bfloat16"), model, T4)
    assert any("bfloat16 needs" in finding.message for finding in launch.errors)


def test_sliding_window_without_a_windowing_backend_bounds_the_prompt(tgi, gpu):
    model = make_model(sliding_window={"window": 4096, "full_attention_layers": 0})
    paged = {"ATTENTION": "paged"}
    long = tgi.launch(settings(max_input_tokens=8192, max_total_tokens=9000, env=paged), model, gpu)
    assert any("4096" in finding.allowed for finding in long.errors)
    short = tgi.launch(settings(max_input_tokens=4096, max_total_tokens=9000, env=paged), model, gpu)
    assert short.errors == ()
