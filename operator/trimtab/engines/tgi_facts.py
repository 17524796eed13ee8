"""What Text Generation Inference 3.3.7 is: number formats, metrics, container, known ends.

Read from the sources of tag v3.3.7 (https://github.com/huggingface/text-generation-inference); `source` fields name the
file. Issue numbers are of that repository.
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

VERSION = "3.3.7"
REPOSITORY = "ghcr.io/huggingface/text-generation-inference"

ALL_VENDORS = frozenset({"nvidia", "amd", "intel"})
CUDA_AND_ROCM = frozenset({"nvidia", "amd"})

NEWEST_COMPUTE_CAPABILITY = 9.0
"""Kernels are compiled for 8.0, 8.6 and 9.0, flashinfer for 7.5 to 9.0 (Dockerfile); Blackwell fails (#3190, #3209)."""
MARLIN = 8.0
"""Marlin, exllama and AWQ kernels check for it (layers/marlin/util.py, layers/gptq, layers/awq)."""

_RULES = (
    QuantizationRule(
        "none",
        16,
        on_the_fly=True,
        vendors=ALL_VENDORS,
        native_models_only=False,
        dtype_allowed=True,
        source="server/text_generation_server/models/__init__.py",
    ),
    QuantizationRule(
        "bitsandbytes",
        8,
        checkpoint_methods=frozenset({"bitsandbytes"}),
        checkpoint_bits=frozenset({8.0}),
        on_the_fly=True,
        native_models_only=False,
        dtype_allowed=True,
        deprecated="eetq",
        notes="No CUDA graphs; slower than 16 bits. A checkpoint of 4 bits would be read as 8 bits.",
        source="server/text_generation_server/layers/bnb.py; launcher/src/main.rs",
    ),
    QuantizationRule(
        "bitsandbytes-nf4",
        4,
        on_the_fly=True,
        dtype_allowed=True,
        notes="No CUDA graphs; slow.",
        source="server/text_generation_server/layers/bnb.py",
    ),
    QuantizationRule(
        "bitsandbytes-fp4",
        4,
        on_the_fly=True,
        dtype_allowed=True,
        notes="As bitsandbytes-nf4, which keeps more quality.",
        source="server/text_generation_server/layers/bnb.py",
    ),
    QuantizationRule(
        "eetq",
        8,
        on_the_fly=True,
        forced_dtype="float16",
        load_in_host_memory=True,
        notes="Weights are quantized on the CPU while loading: slow start.",
        source="server/text_generation_server/layers/eetq.py",
    ),
    QuantizationRule(
        "fp8",
        8,
        checkpoint_methods=frozenset({"fp8", "fbgemm_fp8"}),
        on_the_fly=True,
        vendors=CUDA_AND_ROCM,
        min_compute_capability=MARLIN,
        auto_detected=True,
        notes="From 9.0 on native; 8.x keeps 16-bit activations and saves memory only.",
        source="server/text_generation_server/layers/fp8.py",
    ),
    QuantizationRule(
        "awq",
        4,
        checkpoint_methods=frozenset({"awq"}),
        checkpoint_bits=frozenset({4.0, 8.0}),
        min_compute_capability=MARLIN,
        forced_dtype="float16",
        auto_detected=True,
        source="server/text_generation_server/layers/awq; #1168, #1573",
    ),
    QuantizationRule(
        "gptq",
        4,
        checkpoint_methods=frozenset({"gptq", "awq"}),
        checkpoint_bits=frozenset({2.0, 3.0, 4.0, 8.0}),
        vendors=CUDA_AND_ROCM,
        forced_dtype="float16",
        auto_detected=True,
        notes="Below compute capability 8.0 only slow Triton kernels.",
        source="server/text_generation_server/layers/gptq",
    ),
    QuantizationRule(
        "marlin",
        4,
        checkpoint_methods=frozenset({"marlin"}),
        checkpoint_bits=frozenset({4.0, 8.0}),
        min_compute_capability=MARLIN,
        forced_dtype="float16",
        source="server/text_generation_server/layers/marlin",
    ),
    QuantizationRule(
        "exl2",
        4,
        checkpoint_methods=frozenset({"exl2"}),
        min_compute_capability=MARLIN,
        shardable=False,
        forced_dtype="float16",
        auto_detected=True,
        notes="No CUDA graphs.",
        source="server/text_generation_server/layers/exl2.py; launcher/src/main.rs",
    ),
    QuantizationRule(
        "compressed-tensors",
        8,
        checkpoint_methods=frozenset({"compressed-tensors"}),
        checkpoint_bits=frozenset({4.0, 8.0}),
        min_compute_capability=MARLIN,
        auto_detected=True,
        source="server/text_generation_server/layers/compressed_tensors",
    ),
)
QUANTIZATIONS = MappingProxyType({rule.name: rule for rule in _RULES})

_HISTOGRAM, _COUNTER, _GAUGE = MetricKind.HISTOGRAM, MetricKind.COUNTER, MetricKind.GAUGE

METRICS = MappingProxyType(
    {
        Signal.QUEUE_SIZE: Metric("tgi_queue_size", _GAUGE),
        Signal.RUNNING: Metric("tgi_batch_current_size", _GAUGE),
        Signal.KV_USED_TOKENS: Metric(
            "tgi_batch_current_max_tokens", _GAUGE, notes="A prefix shared by several requests counts for each."
        ),
        Signal.REQUESTS_SUCCEEDED: Metric("tgi_request_success", _COUNTER),
        Signal.REQUESTS_FAILED: Metric(
            "tgi_request_failure", _COUNTER, 'err!~"validation|dropped"', "Faults of the server, not of the client."
        ),
        Signal.REQUEST_SECONDS: Metric("tgi_request_duration", _HISTOGRAM, notes="Successes only."),
        Signal.QUEUE_SECONDS: Metric("tgi_request_queue_duration", _HISTOGRAM),
        Signal.DECODE_STEP_SECONDS: Metric(
            "tgi_batch_inference_duration", _HISTOGRAM, 'method="decode"', "Later chunks of a long prompt count too."
        ),
        Signal.PREFILL_SECONDS: Metric(
            "tgi_batch_inference_duration", _HISTOGRAM, 'method="prefill"', "First chunk of a long prompt only."
        ),
        Signal.INPUT_TOKENS: Metric(
            "tgi_request_input_length", _HISTOGRAM, notes="Recorded again for each continuation after 1,024 tokens."
        ),
        Signal.GENERATED_TOKENS: Metric("tgi_request_generated_tokens", _HISTOGRAM, notes="Booked at request end."),
    }
)
"""TGI exports neither TTFT nor the KV capacity (#1977, #2887), and its mean time per token includes the prefill."""

CONTAINER = ContainerFacts(
    health_path="/health",
    metrics_path="/metrics",
    # The port opens only after download, load and warm-up: refused connections mean "still starting".
    startup=ProbeAdvice(period=5, timeout=5, failure_threshold=240),
    readiness=ProbeAdvice(period=5, timeout=10, failure_threshold=3),
    # /health waits for the running forward pass; a dead shard ends the container by itself.
    liveness=ProbeAdvice(period=15, timeout=30, failure_threshold=4),
    runs_as_root=True,
    root_reason=(
        "public TGI images since 3.1 keep Python below /root, which only root can read (#3082, #3225):"
        " build an image from it that can, then set engine.image and engine.runAsNonRoot"
    ),
    read_only_root=False,
    # The router writes ./out/tokenizer.json below its working folder /usr/src; where it cannot, it falls back to the
    # Python tokenizer with a single worker (router/src/server.rs).
    writable=MappingProxyType({"out": "/usr/src/out", "tmp": "/tmp"}),  # noqa: S108 - a mount, not a file
    cache_dir="/data",
    token_env="HF_TOKEN",  # noqa: S106 - the name of a variable
)

GRACEFUL_SECONDS = 90
"""Default of --graceful-termination-timeout, once for the web server; the shards then stop within about a second."""
STOP_SECONDS = 15
PRE_STOP_SECONDS = 10
"""The listener closes at once on SIGTERM, before endpoints are updated."""

FAILURES = (
    FailurePattern(
        r"Not enough memory to handle (\d+ )?prefill tokens",
        "WarmupOutOfMemory",
        "lower batching.maxBatchPrefillTokens, quantize, or use more or larger GPUs",
    ),
    FailurePattern(
        r"Not enough memory to handle `?max_total_tokens",
        "ContextDoesNotFit",
        "lower context.maxTotalTokens, use an FP8 KV cache, or more or larger GPUs",
    ),
    FailurePattern(
        r"CUDA out of memory|OutOfMemoryError",
        "GpuOutOfMemory",
        "lower batching.maxBatchPrefillTokens or leave more room with --cuda-memory-fraction in engine.extraArgs",
    ),
    FailurePattern(
        r"make sure the model is already quantized",
        "CheckpointNotQuantized",
        "name a repository whose weights are stored in the wanted quantization",
    ),
    FailurePattern(
        r"401 Client Error|GatedRepoError|Access to model .* is restricted",
        "ModelAccessDenied",
        "accept the model's licence on the Hub and set model.tokenSecretRef",
    ),
    FailurePattern(
        r"404 Client Error|RepositoryNotFoundError|RevisionNotFoundError",
        "ModelNotFound",
        "correct model.id and model.revision",
    ),
    FailurePattern(
        r"Each process is one gpu|NotEnoughCUDADevices",
        "TooFewGpus",
        "the container sees fewer GPUs than hardware.gpusPerReplica: check the device plugin",
    ),
    FailurePattern(
        r"No space left on device", "DiskFull", "give model.cache a larger volume or raise podTemplate.shmSize"
    ),
    FailurePattern(
        r"NCCL (error|WARN)|ncclSystemError|Watchdog caught collective operation timeout",
        "CollectiveFailed",
        "raise podTemplate.shmSize; GPUs without peer access need NCCL_P2P_DISABLE=1 in engine.env",
    ),
    FailurePattern(r"error: unexpected argument|error: invalid value", "BadArguments", "correct engine.extraArgs"),
    FailurePattern(r"ShardCannotStart|Shard .* failed to start", "ShardCannotStart", "see the lines before it"),
)
