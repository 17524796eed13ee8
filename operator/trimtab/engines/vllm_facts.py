"""What vLLM 0.11.0 is: number formats, metrics, container, known ends.

Read from the sources of that release (https://github.com/vllm-project/vllm/tree/v0.11.0); `source` fields name files.
"""

from types import MappingProxyType

from trimtab.engines.base import (
    ContainerFacts,
    FailurePattern,
    Metric,
    MetricKind,
    ProbeAdvice,
    QuantizationRule,
    Signal,
)

VERSION = "0.11.0"
IMAGE = f"docker.io/vllm/vllm-openai:v{VERSION}"
AMD_IMAGE = "docker.io/rocm/vllm:rocm7.0.0_vllm_0.11.1_20251103"
"""AMD's nearest build; the project itself published none for ROCm at that release."""

_BOTH = frozenset({"nvidia", "amd"})
_FOLDER = "vllm/model_executor/layers/quantization"

_RULES = (
    QuantizationRule("none", 16, on_the_fly=True, vendors=_BOTH, native_models_only=False, dtype_allowed=True),
    QuantizationRule(
        "fp8",
        8,
        checkpoint_methods=frozenset({"fp8", "fp8-block", "fbgemm_fp8"}),
        on_the_fly=True,
        vendors=_BOTH,
        min_compute_capability=8.0,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        notes="From 8.9 on native; below Marlin kernels with 16-bit activations.",
        source=f"{_FOLDER}/fp8.py",
    ),
    QuantizationRule(
        "awq",
        4,
        checkpoint_methods=frozenset({"awq"}),
        checkpoint_bits=frozenset({4.0}),
        vendors=_BOTH,
        min_compute_capability=7.5,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        notes="Named on the command line it would run on slow kernels instead of Marlin.",
        source=f"{_FOLDER}/awq.py, awq_marlin.py",
    ),
    QuantizationRule(
        "gptq",
        4,
        checkpoint_methods=frozenset({"gptq"}),
        checkpoint_bits=frozenset({2.0, 3.0, 4.0, 8.0}),
        vendors=_BOTH,
        min_compute_capability=6.0,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        notes="As awq: Marlin is chosen by itself where it can be.",
        source=f"{_FOLDER}/gptq.py, gptq_marlin.py",
    ),
    QuantizationRule(
        "compressed-tensors",
        8,
        checkpoint_methods=frozenset({"compressed-tensors"}),
        vendors=_BOTH,
        min_compute_capability=7.0,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        source=f"{_FOLDER}/compressed_tensors/compressed_tensors.py",
    ),
    QuantizationRule(
        "bitsandbytes",
        8,
        checkpoint_methods=frozenset({"bitsandbytes"}),
        min_compute_capability=7.0,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        notes="Ready-made checkpoints only: on the fly vLLM makes NF4.",
        source=f"{_FOLDER}/bitsandbytes.py",
    ),
    QuantizationRule(
        "bitsandbytes-nf4",
        4,
        on_the_fly=True,
        min_compute_capability=7.0,
        native_models_only=False,
        dtype_allowed=True,
        source=f"{_FOLDER}/bitsandbytes.py (load_in_4bit is its default)",
    ),
    QuantizationRule(
        "mxfp4",
        4,
        checkpoint_methods=frozenset({"mxfp4"}),
        vendors=_BOTH,
        min_compute_capability=8.0,
        native_models_only=False,
        dtype_allowed=True,
        auto_detected=True,
        source=f"{_FOLDER}/mxfp4.py",
    ),
)
QUANTIZATIONS = MappingProxyType({rule.name: rule for rule in _RULES})

_HISTOGRAM, _COUNTER, _GAUGE = MetricKind.HISTOGRAM, MetricKind.COUNTER, MetricKind.GAUGE

METRICS = MappingProxyType(
    {
        Signal.QUEUE_SIZE: Metric("vllm:num_requests_waiting", _GAUGE),
        Signal.RUNNING: Metric("vllm:num_requests_running", _GAUGE),
        Signal.KV_USED_RATIO: Metric("vllm:kv_cache_usage_perc", _GAUGE, notes="0 to 1, whatever its name says."),
        Signal.REQUESTS_SUCCEEDED: Metric(
            "vllm:request_success_total", _COUNTER, 'finished_reason=~"stop|length"', "Aborted requests count too."
        ),
        Signal.REQUEST_SECONDS: Metric("vllm:e2e_request_latency_seconds", _HISTOGRAM),
        Signal.QUEUE_SECONDS: Metric("vllm:request_queue_time_seconds", _HISTOGRAM),
        Signal.TTFT_SECONDS: Metric("vllm:time_to_first_token_seconds", _HISTOGRAM),
        Signal.TPOT_SECONDS: Metric("vllm:request_time_per_output_token_seconds", _HISTOGRAM),
        Signal.DECODE_STEP_SECONDS: Metric(
            "vllm:inter_token_latency_seconds", _HISTOGRAM, notes="Counted once for each token, not for each step."
        ),
        Signal.PREFILL_SECONDS: Metric("vllm:request_prefill_time_seconds", _HISTOGRAM, notes="All chunks together."),
        Signal.INPUT_TOKENS: Metric("vllm:prompt_tokens_total", _COUNTER),
        Signal.GENERATED_TOKENS: Metric("vllm:generation_tokens_total", _COUNTER),
        Signal.PREEMPTIONS: Metric("vllm:num_preemptions_total", _COUNTER),
    }
)
"""vllm/v1/metrics/loggers.py; the client library adds `_total` to counters. Failures are not counted."""

CONTAINER = ContainerFacts(
    health_path="/health",
    metrics_path="/metrics",
    startup=ProbeAdvice(period=5, timeout=5, failure_threshold=240),
    readiness=ProbeAdvice(period=5, timeout=5, failure_threshold=3),
    # /health asks the API server's process only, which stays responsive during long prefills.
    liveness=ProbeAdvice(period=15, timeout=15, failure_threshold=4),
    runs_as_root=True,
    root_reason=(
        "the public image has no other user and keeps compile caches below /root:"
        " build an image from it that has one, then set engine.image and engine.runAsNonRoot"
    ),
    read_only_root=False,
    writable=MappingProxyType({"cache": "/root/.cache", "tmp": "/tmp"}),  # noqa: S108 - a mount, not a file
    cache_dir="/data",
    token_env="HF_TOKEN",  # noqa: S106 - the name of a variable
    # Later releases changed the image's entrypoint; the program is the same in all of them.
    command=("vllm", "serve"),
)

DRAIN_SECONDS = 90
STOP_SECONDS = 15
PRE_STOP_SECONDS = 10

FAILURES = (
    FailurePattern(
        r"To serve at least one request with the models's max seq len",
        "ContextDoesNotFit",
        "lower context.maxTotalTokens, use an FP8 KV cache, or more or larger GPUs",
    ),
    FailurePattern(
        r"No available memory for the cache blocks",
        "NoMemoryForCache",
        "weights leave no room: quantize, or use more or larger GPUs",
    ),
    FailurePattern(
        r"Free memory on device .* is less than desired GPU memory utilization",
        "GpuNotFree",
        "another process holds memory of the GPU: do not share it, or lower --gpu-memory-utilization",
    ),
    FailurePattern(
        r"CUDA out of memory|OutOfMemoryError",
        "GpuOutOfMemory",
        "lower batching.maxBatchSize or --gpu-memory-utilization in engine.extraArgs",
    ),
    FailurePattern(
        r"GatedRepoError|401 Client Error|Access to model .* is restricted",
        "ModelAccessDenied",
        "accept the model's licence on the Hub and set model.tokenSecretRef",
    ),
    FailurePattern(
        r"RepositoryNotFoundError|RevisionNotFoundError|404 Client Error",
        "ModelNotFound",
        "correct model.id and model.revision",
    ),
    FailurePattern(
        r"attention heads .* must be divisible by tensor parallel size", "BadShardCount", "change gpusPerReplica"
    ),
    FailurePattern(r"No space left on device", "DiskFull", "give model.cache a larger volume"),
    FailurePattern(r"error: (unrecognized arguments|argument .*: invalid)", "BadArguments", "correct engine.extraArgs"),
    FailurePattern(r"Engine core initialization failed", "EngineStartFailed", "see the lines before it"),
)
