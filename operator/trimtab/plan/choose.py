"""Which configuration to run, and why not the others.

Order of judgement: what the engine, the checkpoint and the GPU can do; memory; the objective; the quality floor; then
the lowest cost of a generated token. Every step before the last is a yes or no that does not depend on the others, so
that a stricter objective can only remove configurations or make them dearer, never cheaper.
"""

from collections.abc import Sequence
from dataclasses import replace

from trimtab.api.errors import FieldError
from trimtab.engines.base import Engine, Finding, Launch
from trimtab.plan.candidates import (
    Bench,
    Candidate,
    StepTimes,
    candidates,
    input_tokens,
)
from trimtab.plan.memory import GIB
from trimtab.plan.performance import calibration_key
from trimtab.plan.types import Option, PlanRequest, PlanResult, RejectionKind, ServingPlan

DEFAULT_QUALITY_LOSS = 1.0
"""Points of a benchmark average that the planner may give up for cost unless the request says otherwise."""
SIZE_CLASS_SPREAD = 5.0
"""Models of a size class within so many points of the best published score are equal; the cheapest is taken."""
CONCURRENCY_HEADROOM = 2
"""Requests that the engine accepts, over those of the planned batch: the sidecar, not the engine, limits."""
ENGINE_CONCURRENCY = 128
"""TGI's own default of --max-concurrent-requests, never gone below."""


def plan(request: PlanRequest, engine: Engine, steps: StepTimes) -> PlanResult:
    """Judge every configuration that the request allows and choose one. Deterministic; no I/O."""
    errors = _request_errors(request, engine)
    if errors:
        return PlanResult(plan=None, errors=errors)
    found = list(candidates(Bench.of(request, engine, steps)))
    _hold_quality_floor(request, found)
    _hold_back_last_resorts(found)
    _keep_best_models(request, found)
    chosen, launch, refusals = _first_that_launches(engine, found)
    if chosen is None and refusals:
        return PlanResult(plan=None, errors=tuple(finding.to_field_error() for finding in refusals))
    if chosen is not None:
        _set_dearer_aside(chosen, found)
    found.sort(key=_nearness)
    options = [_option(engine, candidate) for candidate in found]
    if chosen is None or launch is None:
        return PlanResult(plan=None, options=tuple(options), rejections=tuple(item.rejection for item in found))
    serving = _serving_plan(engine, chosen, launch, found)
    return PlanResult(
        plan=serving,
        options=(serving.option, *options[1:]),
        rejections=tuple(candidate.rejection for candidate in found),
    )


def _request_errors(request: PlanRequest, engine: Engine) -> tuple[FieldError, ...]:
    errors = []
    if not request.models:
        errors.append(FieldError("spec.model", None, "no model to plan for", "a model of the catalogue"))
    if not request.pools:
        errors.append(
            FieldError(
                "spec.hardware.gpuProducts", None, "no GPU of the catalogue is allowed or present", "GPU products"
            )
        )
    if request.quantization != "auto" and request.quantization not in engine.quantizations:
        errors.append(
            FieldError(
                "spec.quantization",
                request.quantization,
                f"{engine.name} cannot do it",
                ", ".join(("auto", *engine.quantizations)),
            )
        )
    return tuple(errors)


def _usable(found: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in found if candidate.rejection is None]


def _hold_quality_floor(request: PlanRequest, found: Sequence[Candidate]) -> None:
    """Set aside what costs more quality than allowed; what was asked for by name is allowed."""
    asked = request.quantization != "auto"
    if asked and request.max_quality_loss is None:
        return
    allowed = DEFAULT_QUALITY_LOSS if request.max_quality_loss is None else request.max_quality_loss
    for candidate in found:
        if candidate.loss > allowed and not candidate.last_resort:
            candidate.reject(
                RejectionKind.QUALITY,
                f"{candidate.settings.quantization} is published to cost {candidate.loss:.1f} points of quality, "
                f"{allowed:.1f} are allowed: ask for it by name or allow a larger loss",
                candidate.loss,
            )


def _hold_back_last_resorts(found: Sequence[Candidate]) -> None:
    """Set last resorts aside when an ordinary configuration fits, whether or not it is fast enough."""
    graver = (RejectionKind.RULE, RejectionKind.MEMORY, RejectionKind.QUALITY)
    for candidate in found:
        if not candidate.last_resort and (candidate.rejection is None or candidate.rejection.kind not in graver):
            break
    else:
        return
    for candidate in found:
        if candidate.last_resort:
            candidate.reject(RejectionKind.QUALITY, candidate.last_resort, candidate.loss)


def _keep_best_models(request: PlanRequest, found: Sequence[Candidate]) -> None:
    """With several models: keep those close to the best one that fits anywhere."""
    if len(request.models) < 2:
        return
    graver = (RejectionKind.RULE, RejectionKind.MEMORY, RejectionKind.QUALITY)
    fitting = [item.model for item in found if item.rejection is None or item.rejection.kind not in graver]
    best = max((model.quality_index or 0.0 for model in fitting), default=0.0)
    for candidate in found:
        score = candidate.model.quality_index or 0.0
        if score < best - SIZE_CLASS_SPREAD:
            candidate.reject(
                RejectionKind.QUALITY,
                f"scores {score:g} where another model of this size scores {best:g} "
                f"({candidate.model.quality_source}): set model.id to take it",
                best - score,
            )


def _preference(candidate: Candidate) -> tuple[bool, float, int, float, tuple[str, str, int, str, str]]:
    cost = candidate.cost
    return (
        cost is None,
        cost if cost is not None else -(candidate.speed.tokens_per_second if candidate.speed else 0.0),
        candidate.settings.gpus_per_replica,
        candidate.loss,
        candidate.order,
    )


def _first_that_launches(
    engine: Engine, found: Sequence[Candidate]
) -> tuple[Candidate | None, Launch | None, tuple[Finding, ...]]:
    """The preferred candidate whose command line the engine would accept; else the findings against the preferred."""
    refusals: tuple[Finding, ...] = ()
    for candidate in sorted(_usable(found), key=_preference):
        complete(candidate)
        launch = engine.launch(candidate.settings, candidate.model, candidate.pool.gpu)
        if not launch.errors:
            return candidate, launch, ()
        refusals = refusals or launch.errors
        candidate.reject(RejectionKind.RULE, "; ".join(finding.sentence() for finding in launch.errors))
    return None, None, refusals


def complete(candidate: Candidate) -> None:
    """Fill in the lengths and the concurrency that follow from the memory and the batch."""
    settings = candidate.settings
    total = settings.max_total_tokens
    if total is None:
        total = max(2, min(candidate.model.max_position, candidate.trusted_tokens))
    prompt = settings.max_input_tokens
    if prompt is None:
        prompt = input_tokens(total, candidate.prompt_cap)
    batching = settings.batching
    if batching.max_concurrent_requests is None and candidate.speed is not None:
        batching = replace(
            batching,
            max_concurrent_requests=max(ENGINE_CONCURRENCY, CONCURRENCY_HEADROOM * candidate.speed.batch),
        )
    candidate.settings = replace(settings, max_total_tokens=total, max_input_tokens=prompt, batching=batching)


def _set_dearer_aside(chosen: Candidate, found: Sequence[Candidate]) -> None:
    for candidate in _usable(found):
        if candidate is not chosen:
            candidate.reject(RejectionKind.DEARER, _dearer_reason(chosen, candidate), candidate.cost or float("inf"))


def _dearer_reason(chosen: Candidate, other: Candidate) -> str:
    if other.cost is None:
        return f"works, but no price is known for {other.pool.gpu.id}: set hardware.pricePerGpuHour to compare it"
    if chosen.cost is None or other.cost <= chosen.cost:
        return "works equally well; the chosen one has fewer GPUs, less loss of quality or comes first by name"
    return (
        f"works, but a million tokens cost {other.cost:.4g} instead of {chosen.cost:.4g}: "
        "restrict hardware.gpuProducts or quantization to take it"
    )


def _nearness(
    candidate: Candidate,
) -> tuple[int, float, tuple[bool, float, int, float, tuple[str, str, int, str, str]]]:
    rejection = candidate.rejection
    if rejection is None:
        return (0, 0.0, _preference(candidate))
    return (int(rejection.kind), candidate.distance, _preference(candidate))


def _option(engine: Engine, candidate: Candidate) -> Option:
    rejection = candidate.rejection
    launch = None
    if candidate.fits and rejection is not None and rejection.kind is not RejectionKind.RULE:
        complete(candidate)
        launch = engine.launch(candidate.settings, candidate.model, candidate.pool.gpu)
    return _described(engine, candidate, launch, (rejection.reason,) if rejection else ())


def _described(engine: Engine, candidate: Candidate, launch: Launch | None, reasons: tuple[str, ...]) -> Option:
    speed = candidate.speed
    return Option(
        model=candidate.model.id,
        engine=engine.name,
        quantization=candidate.settings.quantization,
        gpu=candidate.pool.gpu.id,
        gpus_per_replica=candidate.settings.gpus_per_replica,
        kv_dtype=candidate.kv_dtype,
        fits=candidate.fits,
        weights_bytes=candidate.weights_bytes,
        overhead_bytes=candidate.overhead_bytes,
        kv_tokens=candidate.kv_tokens,
        max_batch_at_context=candidate.kv_tokens // candidate.needed_tokens,
        ttft_ms=speed.ttft_ms if speed else None,
        tpot_ms=speed.tpot_ms if speed else None,
        requests_per_second=speed.requests_per_second if speed else None,
        tokens_per_second=speed.tokens_per_second if speed else None,
        cost_per_million_tokens=candidate.cost,
        launcher_args=launch.args if launch else (),
        env=launch.env if launch else {},
        reasons=reasons,
    )


def _serving_plan(engine: Engine, chosen: Candidate, launch: Launch, found: Sequence[Candidate]) -> ServingPlan:
    settings, speed, step = chosen.settings, chosen.speed, chosen.step
    if speed is None or step is None or settings.max_total_tokens is None or settings.max_input_tokens is None:
        raise AssertionError("a usable candidate was measured and completed")
    warnings = tuple(finding.sentence() for finding in launch.warnings)
    option = _described(engine, chosen, launch, (*_why(chosen, found), *warnings))
    price = chosen.pool.price_per_hour
    return ServingPlan(
        option=option,
        model=chosen.model,
        pool=chosen.pool,
        settings=settings,
        max_input_tokens=settings.max_input_tokens,
        max_total_tokens=settings.max_total_tokens,
        kv_tokens=chosen.kv_tokens,
        max_batch_within_slo=speed.batch,
        requests_per_second=speed.requests_per_second,
        tokens_per_second=speed.tokens_per_second,
        step=step,
        calibration_key=calibration_key(
            chosen.model.id,
            settings.quantization,
            chosen.pool.gpu.id,
            settings.gpus_per_replica,
            settings.kv_cache_dtype,
            engine.name,
        ),
        cost_per_hour=None if price is None else price * settings.gpus_per_replica,
        estimate=step.estimate,
        warnings=warnings,
    )


def _why(chosen: Candidate, found: Sequence[Candidate]) -> tuple[str, ...]:
    speed, step = chosen.speed, chosen.step
    reasons = [_rank(chosen, found)]
    reasons.append(
        f"each GPU holds {chosen.weights_bytes / GIB:.1f} GiB of weights and {chosen.overhead_bytes / GIB:.1f} GiB of "
        f"overhead; the KV cache holds about {chosen.kv_tokens} tokens"
    )
    if speed is not None:
        reasons.append(
            f"a batch of {speed.batch} gives {speed.tpot_ms:.1f} ms per token and {speed.ttft_ms:.0f} ms to the first"
        )
    if chosen.last_resort:
        reasons.append(f"last resort: {chosen.last_resort}")
    if chosen.model.confidence == "low":
        reasons.append(f"facts about {chosen.model.id} are guessed from its name: check them against its config.json")
    if step is not None:
        kind = "an estimate" if step.estimate else "from measurements"
        origin = step.source.partition(":")[0]
        reasons.append(f"the speed is {kind}: {origin}")
    return tuple(reasons)


def _rank(chosen: Candidate, found: Sequence[Candidate]) -> str:
    rivals = sum(1 for candidate in found if candidate.rejection and candidate.rejection.kind is RejectionKind.DEARER)
    if rivals == 0:
        return f"the only one of {len(found)} configurations that does"
    if chosen.cost is None:
        return f"highest throughput of {rivals + 1} configurations that do; no price is known"
    return f"cheapest of {rivals + 1} configurations that do, of {len(found)} looked at"
