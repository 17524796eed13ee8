"""The planner as the controller uses it: GPUs read from the nodes, plans remembered, choices kept."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.api.spec import KvCacheDtype, LLMDeploymentSpec, Quantization
from trimtab.api.status import MAX_REJECTED_OPTIONS
from trimtab.catalog.catalogue import Catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.controller.decided import Choice, asked_of
from trimtab.controller.modelfacts import Missing, ModelFinder
from trimtab.controller.objects import Manifest
from trimtab.controller.seams import Planned
from trimtab.engines.registry import ENGINES, get_engine
from trimtab.plan.from_spec import NodeGpus
from trimtab.plan.planner import plan_spec
from trimtab.plan.types import Calibration, PlanResult, ServingPlan
from trimtab.resources.placement import PRODUCT_LABELS
from trimtab.resources.sidecar_config import LiveSettings, live_config

_REMEMBERED = 2048
_Question = tuple[str, frozenset[NodeGpus] | None, tuple[Calibration, ...]]
_GPU_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}


def gpus_of(nodes: Iterable[Manifest], selector: Mapping[str, str]) -> frozenset[NodeGpus]:
    """The GPUs of the nodes that carry all labels of `selector`. Cordoned nodes count: they come back."""
    found = set()
    for node in nodes:
        labels: Mapping[str, str] = node["metadata"].get("labels") or {}
        if not selector.items() <= labels.items():
            continue
        status = node.get("status") or {}
        capacity: Mapping[str, str] = status.get("allocatable") or status.get("capacity") or {}
        for vendor, resource in _GPU_RESOURCES.items():
            product, count = labels.get(PRODUCT_LABELS[vendor]), int(capacity.get(resource) or 0)
            if product and count:
                found.add(NodeGpus(product, count))
    return frozenset(found)


class CachedPlanner:
    """Planner of `trimtab.controller.seams` over the pure planner.

    `nodes_known` False: the nodes are not watched, plans assume that whatever the spec allows exists.
    """

    def __init__(self, catalogue: Catalogue, *, nodes_known: bool = True, finder: ModelFinder | None = None) -> None:
        self._catalogue = catalogue
        self._nodes_known = nodes_known
        self._finder = finder
        self._results: OrderedDict[_Question, PlanResult] = OrderedDict()

    def plan(
        self,
        spec: LLMDeploymentSpec,
        nodes: Sequence[Manifest],
        choice: Choice | None,
        *,
        serving: bool,
        calibrations: tuple[Calibration, ...] = (),
    ) -> Planned:
        if spec.engine.type.value not in ENGINES:
            known = ", ".join(sorted(ENGINES))
            return Planned(None, problem=f"spec.engine.type: no such engine here (allowed: {known})")
        facts = self._facts(spec)
        if isinstance(facts, Missing):
            problem = f"spec.model.id: {spec.model.id} is not in the catalogue: {facts.why}"
            return Planned(None, problem=problem, pending=facts.pending)
        asked = asked_of(spec)
        seen = gpus_of(nodes, spec.hardware.node_selector) if self._nodes_known else None
        kept = choice if choice is not None and choice.asked == asked else None
        measured = calibrations if kept is None else kept.calibrations
        fresh = self._result(spec, seen, facts, measured)
        if kept is None or (fresh.plan is not None and _choice(asked, fresh.plan, measured) == kept):
            return _planned(asked, fresh, measured)
        still_there = seen is None or any(node.product == kept.gpu for node in seen)
        if not (serving or still_there):
            return _planned(asked, fresh, measured)
        # The nodes' GPUs are left out: whether the kept ones are free is the scheduler's question.
        pinned_nodes = None if seen is None else frozenset({NodeGpus(kept.gpu, kept.gpus_per_replica)})
        pinned = self._result(_pinned(spec, kept), pinned_nodes, facts, measured)
        if pinned.plan is None:
            return _planned(asked, pinned if serving else fresh, measured)
        # Recorded under the original question: asked again tomorrow, the choice must still be found.
        return _planned(asked, pinned, measured, instead_of=fresh.plan)

    def _facts(self, spec: LLMDeploymentSpec) -> ModelFacts | Missing | None:
        """Facts from outside the catalogue; None: not needed or not to be had."""
        name = spec.model.id
        if self._finder is None or name is None or name.startswith("pvc://"):
            return None
        if self._catalogue.find_model(name) is not None:
            return None
        return self._finder.find(name, spec.model.revision)

    def _result(
        self,
        spec: LLMDeploymentSpec,
        nodes: frozenset[NodeGpus] | None,
        facts: ModelFacts | None,
        calibrations: tuple[Calibration, ...],
    ) -> PlanResult:
        key = (asked_of(spec), nodes, calibrations)
        known = self._results.get(key)
        if known is None:
            ordered = None if nodes is None else sorted(nodes, key=lambda node: (node.product, node.count))
            known = self._results[key] = plan_spec(spec, self._catalogue, ordered, facts, calibrations)
            if len(self._results) > _REMEMBERED:
                self._results.popitem(last=False)
        else:
            self._results.move_to_end(key)
        return known


def _choice(asked: str, plan: ServingPlan, calibrations: tuple[Calibration, ...]) -> Choice:
    option = plan.option
    return Choice(
        asked=asked,
        model=option.model,
        gpu=plan.pool.product_label or plan.pool.gpu.id,
        gpus_per_replica=option.gpus_per_replica,
        quantization=option.quantization,
        kv_dtype=option.kv_dtype,
        calibrations=calibrations,
    )


def _pinned(spec: LLMDeploymentSpec, choice: Choice) -> LLMDeploymentSpec:
    """The spec with everything that was left to the planner set to what it chose."""
    hardware = {"gpu_products": (choice.gpu,), "gpus_per_replica": choice.gpus_per_replica}
    updates: dict[str, Any] = {
        "hardware": spec.hardware.model_copy(update=hardware),
        "quantization": Quantization(choice.quantization),
    }
    if spec.model.size is not None:
        updates["model"] = spec.model.model_copy(update={"id": choice.model, "size": None})
    # Plans name the real format; specs say `model` for the model's own.
    known = {member.value for member in KvCacheDtype}
    updates["kv_cache_dtype"] = KvCacheDtype(choice.kv_dtype) if choice.kv_dtype in known else KvCacheDtype.MODEL
    return spec.model_copy(update=updates)


def _planned(
    asked: str, result: PlanResult, calibrations: tuple[Calibration, ...], instead_of: ServingPlan | None = None
) -> Planned:
    plan = result.plan
    if plan is None:
        sentences = "; ".join(error.sentence() for error in result.errors)
        return Planned(None, problem=sentences or "no configuration fits")
    kept: tuple[str, ...] = ()
    if instead_of is not None:
        kept = (f"kept because it was chosen before; planned afresh it would be {instead_of.option.label}",)
    return Planned(
        plan,
        choice=_choice(asked, plan, calibrations),
        summary=f"{plan.option.label}: {'; '.join((*kept, *plan.option.reasons[:1]))}".rstrip(": "),
        report=plan_report(plan, result, kept),
        first_limit=int(live_config(plan, LiveSettings())["maxInFlight"]),
        cost_per_hour=plan.cost_per_hour,
        failures=get_engine(plan.option.engine).failures,
    )


def plan_report(plan: ServingPlan, result: PlanResult, more_reasons: Sequence[str] = ()) -> dict[str, Any]:
    """`status.plan`: what was chosen, what it is expected to do, and why not the others."""
    option, engine = plan.option, get_engine(plan.option.engine)
    report: dict[str, Any] = {
        "model": option.model,
        "engine": f"{engine.name}-{engine.version}",
        "quantization": option.quantization,
        "kvCacheDtype": option.kv_dtype,
        "gpu": option.gpu,
        "gpusPerReplica": option.gpus_per_replica,
        "maxInputTokens": plan.max_input_tokens,
        "maxTotalTokens": plan.max_total_tokens,
        "kvTokens": plan.kv_tokens,
        "maxBatchWithinSlo": plan.max_batch_within_slo,
        "requestsPerSecond": _rounded(plan.requests_per_second),
        "ttftMs": _rounded(option.ttft_ms),
        "tpotMs": _rounded(option.tpot_ms),
        "costPerHour": _rounded(plan.cost_per_hour),
        "costPerMillionTokens": _rounded(option.cost_per_million_tokens),
        "estimate": plan.estimate,
        "launcherArgs": list(plan.launcher_args),
        "reasons": [*more_reasons, *option.reasons, *plan.warnings],
        "rejected": [
            {"option": other.label, "reason": why.reason} for other, why in result.rejected[:MAX_REJECTED_OPTIONS]
        ],
    }
    return {name: value for name, value in report.items() if value is not None}


def _rounded(value: float | None) -> float | None:
    """Four significant digits: more would be noise, and a reason to write status."""
    return None if value is None else float(f"{value:.4g}")
