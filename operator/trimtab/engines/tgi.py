"""Text Generation Inference 3.3.7, the last release of an engine whose flags and metrics no longer change."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from trimtab.catalog.flags import load_flags
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines import tgi_facts
from trimtab.engines.base import (
    MODEL_KV_DTYPE,
    ContainerFacts,
    Drain,
    EngineSettings,
    FailurePattern,
    Launch,
    Metric,
    QuantizationRule,
    Signal,
)
from trimtab.engines.resolve import Typed, Vocabulary, error, resolve
from trimtab.engines.tgi_rules import BLOCK_TOKENS, Case, check, resolve_attention

_PORT_REASON = "is fixed: the sidecar and the probes use port 8000"
_DEVICES = "the device plugin sets it: GPUs are chosen by hardware.gpusPerReplica"
_TOKEN = "overrides the token of model.tokenSecretRef: set that instead"  # noqa: S105 - a sentence
_NGROK = "makes the router panic at start"

RESERVED: Mapping[str, str] = {
    "--model-id": "spec.model.id",
    "--revision": "spec.model.revision",
    "--num-shard": "spec.hardware.gpusPerReplica",
    "--sharded": "spec.hardware.gpusPerReplica",
    "--quantize": "spec.quantization",
    "--kv-cache-dtype": "spec.kvCacheDtype",
    "--max-input-tokens": "spec.context.maxInputTokens",
    "--max-input-length": "spec.context.maxInputTokens",
    "--max-total-tokens": "spec.context.maxTotalTokens",
    "--max-batch-size": "spec.batching.maxBatchSize",
    "--max-batch-prefill-tokens": "spec.batching.maxBatchPrefillTokens",
    "--max-batch-total-tokens": "spec.batching.maxBatchTotalTokens",
    "--waiting-served-ratio": "spec.batching.waitingServedRatio",
    "--max-waiting-tokens": "spec.batching.maxWaitingTokens",
    "--max-concurrent-requests": "spec.batching.maxConcurrentRequests",
    "--port": _PORT_REASON,
    "HF_TOKEN": "spec.model.tokenSecretRef",
}
"""Flags with a field of their own."""

FORBIDDEN: Mapping[str, str] = {
    "--ngrok": _NGROK,
    "--ngrok-authtoken": _NGROK,
    "--ngrok-edge": _NGROK,
    "HF_API_TOKEN": _TOKEN,
    "HUGGING_FACE_HUB_TOKEN": _TOKEN,
    "CUDA_VISIBLE_DEVICES": _DEVICES,
    "NVIDIA_VISIBLE_DEVICES": _DEVICES,
    "ZE_AFFINITY_MASK": _DEVICES,
}

_TRUE = {"1": True, "true": True, "0": False, "false": False}


class TgiEngine:
    """See `trimtab.engines.base.Engine`."""

    name = "tgi"
    version = tgi_facts.VERSION
    quantizations: Mapping[str, QuantizationRule] = tgi_facts.QUANTIZATIONS
    container: ContainerFacts = tgi_facts.CONTAINER
    metrics: Mapping[Signal, Metric] = tgi_facts.METRICS
    failures: tuple[FailurePattern, ...] = tgi_facts.FAILURES

    @property
    def vocabulary(self) -> Vocabulary:
        """Flags and who may set them."""
        return Vocabulary(load_flags("tgi"), RESERVED, FORBIDDEN, splits_arguments=True)

    def image(self, gpu: GpuFacts) -> str:
        """Public image; other vendors have a suffix (.github/workflows/build.yaml)."""
        if gpu.vendor == "amd":
            return f"{tgi_facts.REPOSITORY}:{self.version}-rocm"
        if gpu.vendor == "intel":
            return f"{tgi_facts.REPOSITORY}:{self.version}-{'gaudi' if 'gaudi' in gpu.resource else 'intel-xpu'}"
        return f"{tgi_facts.REPOSITORY}:{self.version}"

    def option_problem(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str | None:
        """Why quantization, KV dtype and sharding cannot work for this model on this GPU; None: they can."""
        rule = self.quantizations.get(settings.quantization)
        if rule is None:
            return f"TGI has no quantization {settings.quantization}"
        newest = tgi_facts.NEWEST_COMPUTE_CAPABILITY
        if gpu.compute_capability is not None and gpu.compute_capability > newest:
            return f"TGI {self.version} has no kernels for {gpu.id}: use a compute capability of at most {newest:.1f}"
        if gpu.host_architecture != "amd64":
            return f"TGI {self.version} has images for amd64 only: use a GPU in other machines than {gpu.id}"
        if rule.name == "gptq" and gpu.vendor == "nvidia" and model.checkpoint and model.checkpoint.method == "awq":
            return f"{model.id} is stored as awq: use quantization awq"
        return (
            rule.problem(model, gpu, settings.gpus_per_replica)
            or _sharding_problem(model, settings.gpus_per_replica)
            or _kv_problem(settings, model, gpu)
        )

    def kv_cache_dtype(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str:
        """Number format in which keys and values are really kept."""
        if settings.kv_cache_dtype != MODEL_KV_DTYPE:
            return settings.kv_cache_dtype
        if settings.dtype is not None:
            return settings.dtype
        forced = self.quantizations[settings.quantization].forced_dtype
        return forced or ("float16" if model.dtype == "float32" else model.dtype)

    def chunks_prompts(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> bool:
        """By attention backend, model and speculation."""
        return resolve_attention(settings, model, gpu).chunking

    def kv_block_tokens(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> int:
        """By attention backend."""
        return BLOCK_TOKENS.get(resolve_attention(settings, model, gpu).backend, 1)

    def understand(self, settings: EngineSettings) -> EngineSettings:
        """Lift dtype, memory fraction, speculation, caching and chunking out of extra arguments and variables.

        What the flag list would refuse stays where it is, to be reported by `launch`.
        """
        found: dict[str, str] = {}
        line = self.vocabulary.flags.parse(settings.extra_args)
        if line.bad:
            return settings
        rest: list[str] = []
        for argument in line.arguments:
            name = argument.facts.name
            # What is set already stays, to be reported as set twice.
            if name in _LIFTED and name not in found and _LIFTED[name](settings) is None:
                found[name] = "true" if argument.value is None else argument.value
            else:
                rest += argument.written
        env = dict(settings.env)
        for name, choices in (("PREFIX_CACHING", _TRUE), ("PREFILL_CHUNKING", _TRUE)):
            if env.get(name) in choices:
                found[name] = env.pop(name)
        return _lift(replace(settings, extra_args=tuple(rest), env=env), found)

    def drain(self, settings: EngineSettings) -> Drain:
        """--graceful-termination-timeout decides."""
        seconds = tgi_facts.GRACEFUL_SECONDS
        for argument in self.vocabulary.flags.parse(settings.extra_args).arguments:
            if argument.facts.flag == "--graceful-termination-timeout" and argument.value is not None:
                seconds = int(argument.value)
        return Drain(seconds, tgi_facts.STOP_SECONDS, tgi_facts.PRE_STOP_SECONDS)

    def launch(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> Launch:
        """Command line of text-generation-launcher."""
        settings = self.understand(settings)
        resolved = resolve(self.vocabulary, _typed(settings), settings)
        lora = "--lora-adapters" in resolved.settings
        case = Case(settings, model, gpu, resolved.settings, resolve_attention(settings, model, gpu, lora))
        findings = [*resolved.findings, *check(case)]
        problem = self.option_problem(settings, model, gpu)
        if problem is not None:
            findings.append(error("spec.quantization", settings.quantization, problem, ", ".join(self.quantizations)))
        args = [*resolved.args]
        for flag, value in (("--usage-stats", "off"), ("--graceful-termination-timeout", self.drain(settings))):
            if flag not in resolved.settings:
                args += [flag, str(value.graceful_seconds) if isinstance(value, Drain) else value]
        return Launch(tuple(args), {**resolved.env, **_variables(settings)}, tuple(findings))


_LIFTED: Mapping[str, Callable[[EngineSettings], object]] = {
    "--dtype": lambda settings: settings.dtype,
    "--cuda-memory-fraction": lambda settings: settings.memory_fraction,
    "--speculate": lambda settings: settings.speculate,
    "--trust-remote-code": lambda settings: settings.trust_remote_code or None,
}


def _lift(settings: EngineSettings, found: Mapping[str, str]) -> EngineSettings:
    batching = settings.batching
    if "PREFILL_CHUNKING" in found:
        batching = replace(batching, prefill_chunking=_TRUE[found["PREFILL_CHUNKING"]])
    return replace(
        settings,
        batching=batching,
        dtype=found.get("--dtype", settings.dtype),
        memory_fraction=(
            float(found["--cuda-memory-fraction"]) if "--cuda-memory-fraction" in found else settings.memory_fraction
        ),
        speculate=int(found["--speculate"]) if "--speculate" in found else settings.speculate,
        trust_remote_code=settings.trust_remote_code or "--trust-remote-code" in found,
        prefix_caching=_TRUE[found["PREFIX_CACHING"]] if "PREFIX_CACHING" in found else settings.prefix_caching,
    )


def _sharding_problem(model: ModelFacts, shards: int) -> str | None:
    if shards == 1:
        return None
    if not model.tgi_native:
        return f"{model.family} has no sharded implementation in TGI: use one GPU"
    if model.num_heads % shards:
        return f"{model.num_heads} attention heads cannot be divided among {shards} GPUs: use fewer GPUs"
    if model.num_kv_heads > 1 and model.num_kv_heads % shards:
        return f"{model.num_kv_heads} key-value heads cannot be divided among {shards} GPUs: use fewer GPUs"
    return None


def _kv_problem(settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str | None:
    dtype = settings.kv_cache_dtype
    if dtype == MODEL_KV_DTYPE:
        return None
    if dtype not in ("fp8_e4m3fn", "fp8_e5m2"):
        return f"TGI has no KV cache in {dtype}: use model, fp8_e4m3fn or fp8_e5m2"
    if not model.tgi_native:
        return f"{model.family} runs through transformers: use its KV cache in the model's dtype"
    if gpu.vendor == "amd" and dtype == "fp8_e5m2":
        return "ROCm has no KV cache in fp8_e5m2: use fp8_e4m3fn"
    backend = resolve_attention(settings, model, gpu).backend
    if backend == "flashdecoding":
        return f"an FP8 KV cache needs flashinfer or paged attention, {model.id} gets {backend}: use kvCacheDtype model"
    return None


def _typed(settings: EngineSettings) -> tuple[Typed, ...]:
    batching = settings.batching
    quantize = None if settings.quantization == "none" else settings.quantization
    kv_dtype = None if settings.kv_cache_dtype == MODEL_KV_DTYPE else settings.kv_cache_dtype
    longest = settings.max_input_tokens
    if longest is None and settings.max_total_tokens is not None and batching.max_batch_prefill_tokens is None:
        # The engine's own default, stated because leaving it out can make its warm-up wrap around.
        longest = settings.max_total_tokens - 1
    fraction = settings.memory_fraction
    extra = "spec.engine.extraArgs"
    return (
        Typed("--model-id", settings.model_id, "spec.model.id"),
        Typed("--revision", settings.revision, "spec.model.revision"),
        Typed("--num-shard", settings.gpus_per_replica, "spec.hardware.gpusPerReplica"),
        Typed("--port", settings.port, "spec.engine"),
        Typed("--quantize", quantize, "spec.quantization"),
        Typed("--dtype", settings.dtype, extra),
        Typed("--kv-cache-dtype", kv_dtype, "spec.kvCacheDtype"),
        Typed("--max-input-tokens", longest, "spec.context.maxInputTokens"),
        Typed("--max-total-tokens", settings.max_total_tokens, "spec.context.maxTotalTokens"),
        Typed("--max-batch-size", batching.max_batch_size, "spec.batching.maxBatchSize"),
        Typed("--max-batch-prefill-tokens", batching.max_batch_prefill_tokens, "spec.batching.maxBatchPrefillTokens"),
        Typed("--max-batch-total-tokens", batching.max_batch_total_tokens, "spec.batching.maxBatchTotalTokens"),
        Typed("--waiting-served-ratio", batching.waiting_served_ratio, "spec.batching.waitingServedRatio"),
        Typed("--max-waiting-tokens", batching.max_waiting_tokens, "spec.batching.maxWaitingTokens"),
        Typed("--max-concurrent-requests", batching.max_concurrent_requests, "spec.batching.maxConcurrentRequests"),
        Typed("--cuda-memory-fraction", fraction, extra),
        Typed("--speculate", settings.speculate, extra),
        Typed("--trust-remote-code", settings.trust_remote_code, extra),
    )


def _variables(settings: EngineSettings) -> dict[str, str]:
    wanted = {
        "PREFILL_CHUNKING": settings.batching.prefill_chunking,
        "PREFIX_CACHING": settings.prefix_caching,
    }
    return {name: "1" if on else "0" for name, on in wanted.items() if on is not None}
