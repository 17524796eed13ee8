"""vLLM 0.11.0: the second engine, which keeps the interface honest."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from trimtab.catalog.flags import load_flags
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines import vllm_facts
from trimtab.engines.base import (
    MODEL_KV_DTYPE,
    ContainerFacts,
    Drain,
    EngineSettings,
    FailurePattern,
    Finding,
    Launch,
    Metric,
    QuantizationRule,
    Signal,
)
from trimtab.engines.resolve import ENV, EXTRA_ARGS, POSITIONAL, Setting, Typed, Vocabulary, error, resolve, warning

KV_DTYPES = {"fp8_e4m3fn": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
BLOCK_TOKENS = 16
FLASH_ATTENTION_3 = 9.0
"""Compute capability from which the default attention keeps keys and values in FP8 (platforms/cuda.py)."""
OLDEST_COMPUTE_CAPABILITY = 7.0

RESERVED: Mapping[str, str] = {
    "--model": "spec.model.id",
    "--revision": "spec.model.revision",
    "--tensor-parallel-size": "spec.hardware.gpusPerReplica",
    "--pipeline-parallel-size": "is not planned for: all GPUs of a replica are tensor-parallel shards",
    "--data-parallel-size": "is not planned for: replicas are pods of their own",
    "--quantization": "spec.quantization",
    "--kv-cache-dtype": "spec.kvCacheDtype",
    "--max-model-len": "spec.context.maxTotalTokens",
    "--max-num-seqs": "spec.batching.maxBatchSize",
    "--max-num-batched-tokens": "spec.batching.maxBatchPrefillTokens",
    "--port": "is fixed: the sidecar and the probes use port 8000",
    "--uds": "the sidecar and the probes need a port",
    "--hf-token": "spec.model.tokenSecretRef",
}
"""Flags with a field of their own."""

_DEVICES = "the device plugin sets it: GPUs are chosen by hardware.gpusPerReplica"
FORBIDDEN: Mapping[str, str] = {
    "--headless": "serves no API",
    "--config": "hides settings from the plan: write them into engine.extraArgs",
    "--disable-log-stats": "switches off the metrics that the tuner reads",
    "CUDA_VISIBLE_DEVICES": _DEVICES,
    "NVIDIA_VISIBLE_DEVICES": _DEVICES,
}


class VllmEngine:
    """See `trimtab.engines.base.Engine`."""

    name = "vllm"
    version = vllm_facts.VERSION
    quantizations: Mapping[str, QuantizationRule] = vllm_facts.QUANTIZATIONS
    container: ContainerFacts = vllm_facts.CONTAINER
    metrics: Mapping[Signal, Metric] = vllm_facts.METRICS
    failures: tuple[FailurePattern, ...] = vllm_facts.FAILURES

    @property
    def vocabulary(self) -> Vocabulary:
        """Flags and who may set them."""
        return Vocabulary(load_flags("vllm"), RESERVED, FORBIDDEN)

    def image(self, gpu: GpuFacts) -> str:
        """Public image; AMD publishes its own."""
        return vllm_facts.AMD_IMAGE if gpu.vendor == "amd" else vllm_facts.IMAGE

    def option_problem(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str | None:
        """Why quantization, KV dtype and sharding cannot work for this model on this GPU; None: they can."""
        rule = self.quantizations.get(settings.quantization)
        if rule is None:
            return f"vLLM has no quantization {settings.quantization}"
        oldest = OLDEST_COMPUTE_CAPABILITY
        if gpu.compute_capability is not None and gpu.compute_capability < oldest:
            return (
                f"vLLM {self.version} needs compute capability {oldest:.1f}, {gpu.id} has {gpu.compute_capability:.1f}:"
                " use a newer GPU"
            )
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
        # `auto` falls back to float16 where the GPU has no bfloat16.
        no_bfloat16 = gpu.compute_capability is not None and gpu.compute_capability < 8
        return "float16" if model.dtype == "float32" or no_bfloat16 else model.dtype

    def chunks_prompts(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> bool:
        """On unless it is switched off."""
        return settings.batching.prefill_chunking is not False

    def kv_block_tokens(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> int:
        """Default of --block-size on CUDA."""
        return BLOCK_TOKENS

    def understand(self, settings: EngineSettings) -> EngineSettings:
        """Lift dtype, memory fraction, caching and chunking out of extra arguments."""
        line = self.vocabulary.flags.parse(settings.extra_args)
        if line.bad:
            return settings
        found: dict[str, str] = {}
        rest: list[str] = []
        for argument in line.arguments:
            name = argument.facts.name
            # What is set already stays, to be reported as set twice.
            if name in _LIFTED and name not in found and _unset(settings, name) and argument.value not in _OTHER_DTYPES:
                off = argument.text.startswith("--no-")
                found[name] = argument.value or ("false" if off else "true")
            else:
                rest += argument.written
        return _lift(replace(settings, extra_args=tuple(rest)), found)

    def drain(self, settings: EngineSettings) -> Drain:
        """vLLM breaks off what runs as soon as it is told to stop: only the preStop hook drains."""
        return Drain(vllm_facts.DRAIN_SECONDS, vllm_facts.STOP_SECONDS, vllm_facts.PRE_STOP_SECONDS)

    def launch(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> Launch:
        """Command line of `vllm serve`."""
        settings = self.understand(settings)
        resolved = resolve(self.vocabulary, _typed(settings), settings)
        findings = [*resolved.findings, *check(settings, resolved.settings)]
        problem = self.option_problem(settings, model, gpu)
        if problem is not None:
            findings.append(error("spec.quantization", settings.quantization, problem, ", ".join(self.quantizations)))
        telemetry = {} if "VLLM_NO_USAGE_STATS" in resolved.env else {"VLLM_NO_USAGE_STATS": "1"}
        return Launch(resolved.args, {**resolved.env, **telemetry}, tuple(findings))


_OTHER_DTYPES = ("auto", "float", "float32", "half")
_LIFTED: Mapping[str, Callable[[EngineSettings], object]] = {
    "--dtype": lambda settings: settings.dtype,
    "--gpu-memory-utilization": lambda settings: settings.memory_fraction,
    "--enable-prefix-caching": lambda settings: settings.prefix_caching,
    "--enable-chunked-prefill": lambda settings: settings.batching.prefill_chunking,
    "--trust-remote-code": lambda settings: settings.trust_remote_code or None,
}


def _unset(settings: EngineSettings, flag: str) -> bool:
    return _LIFTED[flag](settings) is None


_SWITCH = {"true": True, "false": False}


def _lift(settings: EngineSettings, found: Mapping[str, str]) -> EngineSettings:
    batching = settings.batching
    if "--enable-chunked-prefill" in found:
        batching = replace(batching, prefill_chunking=_SWITCH[found["--enable-chunked-prefill"]])
    fraction = found.get("--gpu-memory-utilization")
    caching = found.get("--enable-prefix-caching")
    return replace(
        settings,
        batching=batching,
        dtype=found.get("--dtype", settings.dtype),
        memory_fraction=settings.memory_fraction if fraction is None else float(fraction),
        prefix_caching=settings.prefix_caching if caching is None else _SWITCH[caching],
        trust_remote_code=settings.trust_remote_code or found.get("--trust-remote-code") == "true",
    )


def _sharding_problem(model: ModelFacts, shards: int) -> str | None:
    if model.num_heads % shards:
        return f"{model.num_heads} attention heads cannot be divided among {shards} GPUs: use fewer GPUs"
    if model.num_kv_heads % shards and shards % model.num_kv_heads:
        return (
            f"{model.num_kv_heads} key-value heads cannot be divided among {shards} GPUs or repeated on them: use fewer"
        )
    return None


def _kv_problem(settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str | None:
    dtype = settings.kv_cache_dtype
    if dtype == MODEL_KV_DTYPE:
        return None
    if dtype not in KV_DTYPES:
        return f"vLLM has no KV cache in {dtype}: use model, {' or '.join(KV_DTYPES)}"
    if settings.env.get("VLLM_ATTENTION_BACKEND") == "FLASHINFER" or gpu.vendor != "nvidia":
        return None
    if (gpu.compute_capability or 0) < FLASH_ATTENTION_3:
        return f"an FP8 KV cache on {gpu.id}: set VLLM_ATTENTION_BACKEND=FLASHINFER in engine.env"
    if dtype == "fp8_e5m2":
        return "the default attention keeps FP8 as fp8_e4m3fn only: use that, or VLLM_ATTENTION_BACKEND=FLASHINFER"
    return None


def _typed(settings: EngineSettings) -> tuple[Typed, ...]:
    batching = settings.batching
    speculative = None
    if settings.speculate:
        speculative = json.dumps({"method": "ngram", "num_speculative_tokens": settings.speculate})
    return (
        Typed(POSITIONAL, settings.model_id, "spec.model.id"),
        Typed("--revision", settings.revision, "spec.model.revision"),
        Typed("--tensor-parallel-size", settings.gpus_per_replica, "spec.hardware.gpusPerReplica"),
        Typed("--port", settings.port, "spec.engine"),
        Typed("--quantization", _quantization_flag(settings.quantization), "spec.quantization"),
        Typed("--dtype", settings.dtype, EXTRA_ARGS),
        Typed("--kv-cache-dtype", KV_DTYPES.get(settings.kv_cache_dtype), "spec.kvCacheDtype"),
        Typed("--max-model-len", settings.max_total_tokens, "spec.context.maxTotalTokens"),
        Typed("--max-num-seqs", batching.max_batch_size, "spec.batching.maxBatchSize"),
        Typed("--max-num-batched-tokens", batching.max_batch_prefill_tokens, "spec.batching.maxBatchPrefillTokens"),
        Typed("--gpu-memory-utilization", settings.memory_fraction, EXTRA_ARGS),
        Typed(*_negatable("enable-prefix-caching", settings.prefix_caching), EXTRA_ARGS),
        Typed(*_negatable("enable-chunked-prefill", batching.prefill_chunking), EXTRA_ARGS),
        Typed("--speculative-config", speculative, EXTRA_ARGS),
        Typed("--trust-remote-code", settings.trust_remote_code, EXTRA_ARGS),
    )


def _quantization_flag(quantization: str) -> str | None:
    """Only what is made on the fly is named: naming a checkpoint's own format would force slower kernels."""
    return {"fp8": "fp8", "bitsandbytes-nf4": "bitsandbytes"}.get(quantization)


def _negatable(name: str, wanted: bool | None) -> tuple[str, bool | None]:
    return (f"--no-{name}", True) if wanted is False else (f"--{name}", wanted)


Rule = Callable[[EngineSettings, Mapping[str, Setting]], Iterable[Finding]]


def _meaningless(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    batching = settings.batching
    for field, value, instead in (
        ("maxBatchTotalTokens", batching.max_batch_total_tokens, "--gpu-memory-utilization in engine.extraArgs"),
        ("waitingServedRatio", batching.waiting_served_ratio, "maxBatchPrefillTokens"),
        ("maxWaitingTokens", batching.max_waiting_tokens, "maxBatchPrefillTokens"),
    ):
        if value is not None:
            yield error(f"spec.batching.{field}", value, "means nothing to vLLM: leave it out", instead)


def _token_budgets(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    budget, sequences = values.get("--max-num-batched-tokens"), values.get("--max-num-seqs")
    longest = values.get("--max-model-len")
    if budget is None:
        return
    if sequences is not None and budget.number < sequences.number:
        message = f"must be at least maxBatchSize {sequences.value}: each decoding request takes one token of it"
        yield error(budget.field, int(budget.number), message, f"at least {sequences.value}")
    if settings.batching.prefill_chunking is False and longest is not None and budget.number < longest.number:
        message = f"must be at least maxTotalTokens {longest.value}, because prompts are not cut into chunks"
        yield error(budget.field, int(budget.number), message, f"at least {longest.value}")


def _token_order(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    low, high = settings.max_input_tokens, settings.max_total_tokens
    if low is not None and high is not None and low >= high:
        message = f"must be less than maxTotalTokens {high}, which counts the answer too"
        yield error("spec.context.maxInputTokens", low, message, f"at most {high - 1}")


def _network(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    host = values.get("--host")
    if host is not None and host.value not in ("0.0.0.0", "::"):  # noqa: S104 - compared, nothing is bound
        message = "probes and the sidecar must both reach the engine: it has to listen on all addresses"
        yield error(host.field, f"--host {host.value}", message, "0.0.0.0 or ::")
    for flag in ("--ssl-keyfile", "--ssl-certfile", "--root-path"):
        if flag in values:
            message = "the sidecar speaks plain HTTP to the engine, on its own paths: end TLS in a gateway"
            yield error(values[flag].field, flag, message, "leave it out")


def _dependent(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    for flag, needed in (
        ("--enable-auto-tool-choice", "--tool-call-parser"),
        ("--enable-log-outputs", "--enable-log-requests"),
    ):
        if flag in values and needed not in values:
            yield error(values[flag].field, flag, f"the server refuses to start without {needed}", needed)
    if settings.model_id.startswith("/") and settings.revision is not None:
        message = "a local folder has no revisions: leave it out"
        yield error("spec.model.revision", settings.revision, message, "no revision with pvc://")


def _costly(settings: EngineSettings, values: Mapping[str, Setting]) -> Iterator[Finding]:
    if "--enforce-eager" in values and values["--enforce-eager"].value == "true":
        yield warning(
            EXTRA_ARGS, "--enforce-eager", "does without CUDA graphs: small batches decode slower than planned"
        )
    if settings.trust_remote_code:
        message = "runs code from the model repository with the rights of the engine: pin model.revision to a commit"
        yield warning(EXTRA_ARGS, "--trust-remote-code", message, "a reviewed commit")
    if settings.env.get("VLLM_SERVER_DEV_MODE") == "1":
        yield error(ENV, "VLLM_SERVER_DEV_MODE=1", "opens routes by which any client can change the server", "0")
    if "VLLM_API_KEY" in settings.secret_env:
        message = "guards /v1 only, and the sidecar's probes do not: rather check keys in a gateway"
        yield warning(ENV, "VLLM_API_KEY", message, "a gateway")


RULES: tuple[Rule, ...] = (_meaningless, _token_budgets, _token_order, _network, _dependent, _costly)


def check(settings: EngineSettings, values: Mapping[str, Setting]) -> tuple[Finding, ...]:
    """All findings, in the order of RULES."""
    return tuple(finding for rule in RULES for finding in rule(settings, values))
