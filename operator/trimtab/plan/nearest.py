"""When nothing fits: the smallest changes to the request that would make it work."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from trimtab.api.errors import FieldError
from trimtab.engines.base import BatchSettings, Engine
from trimtab.plan.candidates import DEFAULT_CONTEXT, StepTimes, default_input_tokens
from trimtab.plan.choose import plan
from trimtab.plan.types import Option, PlanRequest, PlanResult, SloTargets


def with_nearest(
    request: PlanRequest,
    result: PlanResult,
    engine: Engine,
    steps: StepTimes,
    other_engines: Mapping[str, Engine] = MappingProxyType({}),
) -> PlanResult:
    """The result, and when it holds no plan, one error for each single change that would give one."""
    if result.plan is not None or result.errors:
        return result
    found = (*_suggestions(request, engine, steps), *_engine_suggestions(request, other_engines, steps))
    best = result.options[0] if result.options else None
    fallback = FieldError(
        "spec",
        best.label if best else None,
        f"nothing works: {best.reasons[0] if best and best.reasons else 'no configuration is allowed'}",
        "no single change of quantization, GPUs, context or objective would do: change several",
    )
    return replace(result, errors=found or (fallback,))


def _suggestions(request: PlanRequest, engine: Engine, steps: StepTimes) -> Iterator[FieldError]:
    found: set[str] = set()
    for field, value, changed in _relaxations(request):
        if field in found:
            continue
        option = _planned(changed, engine, steps)
        if option is not None:
            found.add(field)
            yield FieldError(field, value, _message(request), _allowed(field, option, changed))


def _engine_suggestions(request: PlanRequest, others: Mapping[str, Engine], steps: StepTimes) -> Iterator[FieldError]:
    """Engines that would do, with settings that mean the same to all of them."""
    for name, engine in sorted(others.items()):
        if name == request.engine:
            continue
        changed = replace(request, engine=name, engine_image=None, extra_args=(), env={}, batching=BatchSettings())
        option = _planned(changed, engine, steps)
        if option is not None:
            way = f"{option.quantization} on {option.gpus_per_replica}x{option.gpu}"
            yield FieldError("spec.engine.type", request.engine, _message(request), f"{name} ({way} works)")


def _planned(request: PlanRequest, engine: Engine, steps: StepTimes) -> Option | None:
    result = plan(request, engine, steps)
    return result.plan.option if result.plan is not None else None


def _message(request: PlanRequest) -> str:
    models = " or ".join(model.id for model in request.models)
    return f"no allowed configuration serves {models}"


def _allowed(field: str, option: Option, changed: PlanRequest) -> str:
    way = f"{option.quantization} on {option.gpus_per_replica}x{option.gpu}"
    match field:
        case "spec.quantization":
            return f"{option.quantization} ({way} works)"
        case "spec.hardware.gpusPerReplica":
            return f"{option.gpus_per_replica} ({way} works)"
        case "spec.hardware.gpuProducts":
            return f"{option.gpu} ({way} works)"
        case "spec.context.maxTotalTokens":
            return f"{changed.max_total_tokens} ({way} works)"
        case "spec.slo":
            ttft, tpot = option.ttft_ms or 0.0, option.tpot_ms or 0.0
            return f"at best TTFT about {ttft:.0f} ms and TPOT about {tpot:.0f} ms ({way})"
    return way


def _relaxations(request: PlanRequest) -> Iterator[tuple[str, object, PlanRequest]]:
    """Single changes, gentlest first: field, its value now, the changed request."""
    if request.quantization != "auto":
        yield "spec.quantization", request.quantization, replace(request, quantization="auto")
    if request.gpus_per_replica is not None:
        yield "spec.hardware.gpusPerReplica", request.gpus_per_replica, replace(request, gpus_per_replica=None)
    for shorter in _shorter(request):
        yield "spec.context.maxTotalTokens", request.max_total_tokens, shorter
    if request.slo:
        alone = replace(request.batching, max_batch_size=1)
        yield "spec.slo", _stated(request.slo), replace(request, slo=SloTargets(), batching=alone)
    if request.alternatives:
        products = ", ".join(pool.gpu.id for pool in request.pools)
        yield "spec.hardware.gpuProducts", products, replace(request, pools=request.alternatives)


def _shorter(request: PlanRequest) -> Iterator[PlanRequest]:
    """The context halved, as often as it takes, but never below a usual one."""
    total, prompt = request.max_total_tokens or 0, request.max_input_tokens
    while total > DEFAULT_CONTEXT:
        total = max(DEFAULT_CONTEXT, total // 2)
        fitting = None if prompt is None else min(prompt, default_input_tokens(total))
        yield replace(request, max_total_tokens=total, max_input_tokens=fitting)


def _stated(slo: SloTargets) -> str:
    parts = [
        f"{name} p{percentile * 100:g} {seconds:g}s"
        for name, targets in (("ttft", slo.ttft), ("tpot", slo.tpot), ("latency", slo.latency))
        for percentile, seconds in targets.items()
    ]
    return ", ".join(parts)
