"""Every configuration that the request allows, with what is predicted of it and why it would not do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.quantization import quality_loss, quantization_of, weight_format
from trimtab.engines.base import MODEL_KV_DTYPE, Engine, EngineSettings
from trimtab.plan.engine_memory import accounting_for, parse_version
from trimtab.plan.memory import (
    GIB,
    Batch,
    Footprint,
    MemoryAccounting,
    ModelSizes,
    divide_memory,
    footprint,
    memory_needed,
)
from trimtab.plan.performance import (
    Speed,
    TooSlow,
    Workload,
    calibration_key,
    cost_per_million_tokens,
    largest_batch,
    speed_at,
)
from trimtab.plan.rules import FP8_KV_LOSS, context_problem, last_resort, node_problem, slow_problem
from trimtab.plan.types import Calibration, GpuPool, PlanRequest, Rejection, RejectionKind, StepCoefficients

DEFAULT_CONTEXT = 4096
"""Longest request that an option must hold when the request states no limit (or the model's own limit, if shorter)."""
DEFAULT_ANSWER = 1024
"""Room for the answer when only one of the two limits is stated."""
DEFAULT_PREFILL_TOKENS = 4096
"""Stated to the engine always: its own defaults depend on the card's name."""
DEFAULT_SEQUENCES = 256
"""Sequences that vLLM's warm-up reserves for."""
CAPACITY_MARGIN = 0.9
"""Part of the predicted KV capacity that a plan relies on: the memory model's error (docs/planner.md)."""
SHARD_COUNTS = (1, 2, 4, 8, 16)
FP8_KV = "fp8_e4m3fn"


class StepTimes(Protocol):
    """Where step times come from: the catalogue's model, or a stand-in in tests."""

    def __call__(self, model: ModelFacts, quantization: str, gpu: GpuFacts, shards: int) -> StepCoefficients | None:
        """Coefficients for a replica; None when nothing is known."""
        ...


@dataclass(slots=True)
class Candidate:
    """One configuration under judgement."""

    model: ModelFacts
    pool: GpuPool
    settings: EngineSettings
    kv_dtype: str
    weights_bytes: int
    overhead_bytes: int
    kv_tokens: int
    trusted_tokens: int
    """The part of `kv_tokens` that a plan relies on."""
    fits: bool
    needed_tokens: int
    memory_needed: int
    loss: float
    """Points of quality that the number formats cost."""
    prompt_cap: int | None = None
    """Longest prompt that the prefill budget allows; None: longer ones are cut."""
    last_resort: str = ""
    """Why it is taken only when nothing else fits; empty: an ordinary candidate."""
    rejection: Rejection | None = None
    distance: float = 0.0
    """How far from working, among equals in kind."""
    step: StepCoefficients | None = None
    speed: Speed | None = None
    cost: float | None = None
    """Of a million generated tokens."""

    @property
    def order(self) -> tuple[str, str, int, str, str]:
        """A total order that depends on nothing but the configuration."""
        return (
            self.model.id,
            self.pool.gpu.id,
            self.settings.gpus_per_replica,
            self.settings.quantization,
            self.settings.kv_cache_dtype,
        )

    def reject(self, kind: RejectionKind, reason: str, distance: float = 0.0) -> None:
        """Set this candidate aside, unless it already is for a graver reason."""
        if self.rejection is None or kind > self.rejection.kind:
            self.rejection = Rejection(kind, reason)
            self.distance = distance


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths that every candidate of a model must serve."""

    needed_tokens: int
    max_input_tokens: int | None
    """None: from what the KV cache holds."""
    max_total_tokens: int | None


@dataclass(frozen=True, slots=True)
class Bench:
    """What all candidates of a request share."""

    request: PlanRequest
    engine: Engine
    steps: StepTimes
    accounting: MemoryAccounting
    base: EngineSettings
    """What all candidates tell the engine."""
    calibrations: Mapping[str, Calibration]

    @classmethod
    def of(cls, request: PlanRequest, engine: Engine, steps: StepTimes) -> "Bench":
        """Prepare the judgement of a request's candidates."""
        base = engine.understand(
            EngineSettings(
                model_id=request.served_model or "",
                revision=request.revision,
                batching=request.batching,
                extra_args=request.extra_args,
                env=request.env,
                secret_env=request.secret_env,
            )
        )
        version = parse_version(_image_version(request.engine_image), parse_version(engine.version, (0,)))
        return cls(
            request=request,
            engine=engine,
            steps=steps,
            accounting=accounting_for(engine.name, version, base),
            base=base,
            calibrations={calibration.key: calibration for calibration in request.calibrations},
        )


def _image_version(image: str | None) -> str | None:
    tag = (image or "").rpartition(":")[2] if image and "@" not in image else ""
    return tag if tag[:1].isdigit() or tag[:2] in ("v0", "v1", "v2", "v3") else None


def candidates(bench: Bench) -> Iterator[Candidate]:
    """All configurations of the request, in a fixed order."""
    for model in bench.request.models:
        yield from _of_model(bench, model)


def token_limits(request: PlanRequest, model: ModelFacts) -> Limits:
    """How long requests may be, as far as request and model say."""
    total, prompt = request.max_total_tokens, request.max_input_tokens
    if total is None and prompt is not None:
        total = min(model.max_position, prompt + DEFAULT_ANSWER)
    if total is not None and prompt is None:
        prompt = default_input_tokens(total)
    return Limits(total or min(model.max_position, DEFAULT_CONTEXT), prompt, total)


def default_input_tokens(max_total_tokens: int) -> int:
    """Longest prompt when only the total is known: a quarter, at most DEFAULT_ANSWER tokens, is left to the answer."""
    return max(1, max_total_tokens - max(1, min(DEFAULT_ANSWER, max_total_tokens // 4)))


def input_tokens(max_total_tokens: int, cap: int | None) -> int:
    """As default_input_tokens, within what the prefill budget allows."""
    usual = default_input_tokens(max_total_tokens)
    return usual if cap is None else min(usual, cap)


def _of_model(bench: Bench, model: ModelFacts) -> Iterator[Candidate]:
    request = bench.request
    sizes = ModelSizes.of(model)
    limits = token_limits(request, model)
    pools = _pools_by_chunking(bench, model)
    for quantization in _quantizations(bench, model):
        for shards in _shard_counts(request):
            for kv_dtype in _kv_dtypes(request):
                for chunked, offered in pools.items():
                    group = _Group.of(bench, sizes, limits, _Variant(quantization, shards, kv_dtype, chunked))
                    for pool in offered:
                        if shards <= max(pool.gpus_per_node, request.gpus_per_replica or 0):
                            yield group.judge(pool)


def _pools_by_chunking(bench: Bench, model: ModelFacts) -> dict[bool, list[GpuPool]]:
    """Pools by whether prompts may be longer than the prefill budget there."""
    pools: dict[bool, list[GpuPool]] = {}
    for pool in bench.request.pools:
        pools.setdefault(bench.engine.chunks_prompts(bench.base, model, pool.gpu), []).append(pool)
    return pools


def _quantizations(bench: Bench, model: ModelFacts) -> tuple[str, ...]:
    wanted = bench.request.quantization
    if wanted != "auto":
        return (wanted,)
    return tuple(bench.engine.quantizations)


def _shard_counts(request: PlanRequest) -> tuple[int, ...]:
    if request.gpus_per_replica is not None:
        return (request.gpus_per_replica,)
    most = max((pool.gpus_per_node for pool in request.pools), default=0)
    return tuple(count for count in SHARD_COUNTS if count <= most)


def _kv_dtypes(request: PlanRequest) -> tuple[str, ...]:
    return (MODEL_KV_DTYPE, FP8_KV) if request.kv_cache_dtype == "auto" else (request.kv_cache_dtype,)


@dataclass(frozen=True, slots=True)
class _Variant:
    """What is chosen within a model, besides the GPU product."""

    quantization: str
    shards: int
    kv_dtype: str
    chunked: bool


@dataclass(frozen=True, slots=True)
class _Group:
    """What candidates that differ only in the GPU share."""

    bench: Bench
    model: ModelFacts
    limits: Limits
    settings: EngineSettings
    batch: Batch
    chunked: bool
    held: Footprint
    loss: float
    last_resort: str
    rule: str

    @classmethod
    def of(cls, bench: Bench, sizes: ModelSizes, limits: Limits, variant: _Variant) -> "_Group":
        request, model = bench.request, sizes.model
        quantization, kv_dtype = variant.quantization, variant.kv_dtype
        settings = _settings(bench, model, limits, variant)
        format_ = weight_format(quantization, model.checkpoint)
        batch = Batch(
            prefill_tokens=settings.batching.max_batch_prefill_tokens or DEFAULT_PREFILL_TOKENS,
            sequences=settings.batching.max_batch_size or DEFAULT_SEQUENCES,
            max_total_tokens=limits.needed_tokens,
            kv_bytes_per_element=1 if kv_dtype.startswith("fp8") else 2,
        )
        stored = quantization == quantization_of(model.checkpoint)
        loss = 0.0 if stored else quality_loss(quantization, model, sizes.parameters.total)
        return cls(
            bench=bench,
            model=model,
            limits=limits,
            settings=settings,
            batch=batch,
            chunked=variant.chunked,
            held=footprint(sizes, format_, variant.shards, bench.accounting, batch),
            loss=loss + (FP8_KV_LOSS if batch.kv_bytes_per_element == 1 else 0.0),
            last_resort=last_resort(request, quantization, kv_dtype, stored=stored),
            rule=context_problem(request, model) or slow_problem(request, quantization, stored=stored),
        )

    def judge(self, pool: GpuPool) -> Candidate:
        """This configuration on one GPU product."""
        bench, settings, model = self.bench, self.settings, self.model
        block_tokens = bench.engine.kv_block_tokens(settings, model, pool.gpu)
        memory = divide_memory(self.held, pool.gpu.memory_bytes, bench.accounting, self.batch, block_tokens)
        key = calibration_key(
            model.id,
            settings.quantization,
            pool.gpu.id,
            settings.gpus_per_replica,
            settings.kv_cache_dtype,
            bench.engine.name,
        )
        calibration = bench.calibrations.get(key) if bench.calibrations else None
        kv_tokens = calibration.kv_tokens if calibration and calibration.kv_tokens else memory.kv_tokens
        trusted = kv_tokens if calibration and calibration.kv_tokens else int(CAPACITY_MARGIN * kv_tokens)
        needed = self.limits.needed_tokens
        candidate = Candidate(
            model=model,
            pool=pool,
            settings=settings,
            kv_dtype=bench.engine.kv_cache_dtype(settings, model, pool.gpu),
            weights_bytes=memory.footprint.weights,
            overhead_bytes=memory.overhead,
            kv_tokens=kv_tokens,
            trusted_tokens=trusted,
            fits=kv_tokens >= needed,
            needed_tokens=needed,
            memory_needed=memory_needed(self.held, needed / CAPACITY_MARGIN, bench.accounting, self.batch),
            loss=self.loss,
            prompt_cap=None if self.chunked else self.batch.prefill_tokens,
            last_resort=self.last_resort,
        )
        self._check(candidate, memory.kv_bytes)
        if candidate.rejection is None:
            self._measure(candidate, calibration)
        return candidate

    def _check(self, candidate: Candidate, kv_bytes: int) -> None:
        shards = self.settings.gpus_per_replica
        pool = candidate.pool
        problem = (
            self.rule
            or node_problem(pool, shards)
            or self.bench.engine.option_problem(self.settings, self.model, pool.gpu)
        )
        if problem:
            candidate.reject(RejectionKind.RULE, problem)
        elif candidate.trusted_tokens < candidate.needed_tokens:
            missing = candidate.memory_needed / pool.gpu.memory_bytes
            candidate.reject(RejectionKind.MEMORY, _memory_reason(candidate, kv_bytes), missing)
        elif self.held.loading + self.held.runtime > pool.gpu.memory_bytes:
            candidate.reject(RejectionKind.MEMORY, _loading_reason(candidate, self.held.loading))

    def _measure(self, candidate: Candidate, calibration: Calibration | None) -> None:
        trusted = candidate.trusted_tokens
        bench, request, pool = self.bench, self.bench.request, candidate.pool
        shards = self.settings.gpus_per_replica
        step = bench.steps(self.model, self.settings.quantization, pool.gpu, shards)
        if calibration is not None:
            step = calibrated(step, calibration)
        if step is None:
            reason = f"no step times are known for {pool.gpu.id}: add a calibration or use a listed GPU"
            candidate.reject(RejectionKind.RULE, reason)
            return
        if self.batch.kv_bytes_per_element == 1 and calibration is None:
            step = replace(step, per_kv_token_ms=step.per_kv_token_ms / 2, estimate=True)
        candidate.step = step
        work = Workload(
            load=request.load,
            prefill_budget=self.batch.prefill_tokens,
            max_input_tokens=self.limits.max_input_tokens or input_tokens(trusted, candidate.prompt_cap),
        )
        most = max(1, trusted // max(1, request.load.total_tokens))
        if request.batching.max_batch_size is not None:
            most = min(most, request.batching.max_batch_size)
        batch = largest_batch(step, work, request.slo, most)
        if isinstance(batch, TooSlow):
            candidate.speed = speed_at(step, work, 1)
            distance = batch.predicted_ms / batch.target_ms
            candidate.reject(RejectionKind.SLO, batch.sentence(), distance)
            return
        candidate.speed = speed_at(step, work, batch)
        price = None if pool.price_per_hour is None else pool.price_per_hour * shards
        candidate.cost = cost_per_million_tokens(price, candidate.speed.tokens_per_second)


def calibrated(step: StepCoefficients | None, measured: Calibration) -> StepCoefficients:
    """Coefficients with what was measured in place of what was estimated."""
    prefill = measured.per_prefill_token_ms
    if prefill is None:
        prefill = step.per_prefill_token_ms if step else 0.0
    return StepCoefficients(
        const_ms=measured.const_ms,
        per_sequence_ms=measured.per_sequence_ms,
        per_kv_token_ms=measured.per_kv_token_ms,
        per_prefill_token_ms=prefill,
        per_prefill_token_squared_ms=step.per_prefill_token_squared_ms if step else 0.0,
        estimate=False,
        source=f"measured on this deployment ({measured.samples} samples)",
    )


def _settings(bench: Bench, model: ModelFacts, limits: Limits, variant: _Variant) -> EngineSettings:
    batching = bench.base.batching
    sequences = batching.max_batch_size
    if bench.engine.name == "vllm" and sequences is None:
        sequences = DEFAULT_SEQUENCES
    prefill = batching.max_batch_prefill_tokens
    if prefill is None:
        prefill = min(DEFAULT_PREFILL_TOKENS, limits.needed_tokens)
        if not variant.chunked and limits.max_input_tokens is not None:
            prefill = max(prefill, limits.max_input_tokens)
    return replace(
        bench.base,
        model_id=bench.base.model_id or model.id,
        quantization=variant.quantization,
        kv_cache_dtype=variant.kv_dtype,
        gpus_per_replica=variant.shards,
        max_input_tokens=limits.max_input_tokens,
        max_total_tokens=limits.max_total_tokens,
        batching=replace(batching, max_batch_prefill_tokens=prefill, max_batch_size=sequences),
    )


def _loading_reason(candidate: Candidate, loading: int) -> str:
    format_, gpu = candidate.settings.quantization, candidate.pool.gpu
    return (
        f"it would fit, but {loading / GIB:.1f} GiB are needed on each {gpu.id} while weights are loaded in 16 bits "
        f"and made {format_}: name a repository that is stored in {format_}, or use more GPUs per replica"
    )


def _memory_reason(candidate: Candidate, kv_bytes: int) -> str:
    trusted = candidate.trusted_tokens
    gpu = candidate.pool.gpu
    needed = candidate.memory_needed / GIB
    ways = f"use more GPUs per replica, a GPU with at least {needed:.1f} GiB, or a smaller number format"
    if kv_bytes <= 0:
        return (
            f"weights of {candidate.weights_bytes / GIB:.1f} GiB and {candidate.overhead_bytes / GIB:.1f} GiB overhead "
            f"on each {gpu.id} of {gpu.memory_gib:g} GiB leave no KV cache: {ways}"
        )
    if trusted < 2:
        return f"the KV cache would hold no request: {ways}"
    return (
        f"the KV cache holds {candidate.kv_tokens} tokens, {trusted} with a margin for the estimate's error, "
        f"one request needs {candidate.needed_tokens}: lower maxTotalTokens to {trusted}, {ways}"
    )
