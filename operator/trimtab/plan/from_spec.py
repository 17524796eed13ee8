"""From an LLMDeployment's spec to what the planner is asked."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.api.spec import EngineType, LLMDeploymentSpec
from trimtab.api.status import Calibration as Status
from trimtab.catalog.catalogue import Catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines.base import BatchSettings
from trimtab.plan.types import Calibration, GpuPool, PlanRequest, SloTargets


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """The GPUs that one node or node pool offers."""

    product: str
    """Value of the node label `nvidia.com/gpu.product`, or a catalogue name."""
    count: int
    """Allocatable GPUs of one node."""


def request_from_spec(
    spec: LLMDeploymentSpec,
    catalogue: Catalogue,
    nodes: Iterable[NodeGpus] | None = None,
    model: ModelFacts | None = None,
    calibrations: tuple[Calibration, ...] = (),
) -> PlanRequest:
    """The planner's question for a spec.

    `nodes` are those on which pods may run; None: unknown, then every product of the catalogue that the spec allows is
    assumed to exist. `model` are facts read from the model's own files and win over the catalogue. Raises
    InvalidSpecError with every field that names something unknown.
    """
    errors: list[FieldError] = []
    models = _models(spec, catalogue, model, errors)
    pools = _pools(spec, catalogue, nodes, errors)
    if errors:
        raise InvalidSpecError(tuple(errors))
    served = _served_model(spec.model.id)
    return PlanRequest(
        models=models,
        pools=pools,
        engine=spec.engine.type.value,
        engine_image=spec.engine.image,
        served_model=served,
        revision=spec.model.revision,
        gpus_per_replica=spec.hardware.gpus_per_replica,
        quantization=spec.quantization.value,
        kv_cache_dtype=spec.kv_cache_dtype.value,
        slo=SloTargets(ttft=spec.slo.ttft.seconds(), tpot=spec.slo.tpot.seconds(), latency=spec.slo.latency.seconds()),
        max_input_tokens=spec.context.max_input_tokens,
        max_total_tokens=spec.context.max_total_tokens,
        batching=BatchSettings(**spec.batching.model_dump()),
        extra_args=spec.engine.extra_args,
        env={variable.name: variable.value for variable in spec.engine.env if variable.value is not None},
        secret_env=frozenset(variable.name for variable in spec.engine.env if variable.secret_key_ref is not None),
        calibrations=calibrations,
        alternatives=catalogue_pools(catalogue),
    )


def calibrations_of(status: Status | None) -> tuple[Calibration, ...]:
    """What `status.calibration` holds, for the planner; empty when nothing was measured yet."""
    if status is None:
        return ()
    return (
        Calibration(
            key=status.key,
            const_ms=status.const_ms,
            per_sequence_ms=status.per_sequence_ms,
            per_kv_token_ms=status.per_kv_token_ms,
            per_prefill_token_ms=status.per_prefill_token_ms,
            samples=status.samples,
        ),
    )


def catalogue_pools(catalogue: Catalogue, prices: Mapping[str, float] | None = None) -> tuple[GpuPool, ...]:
    """Every product of the catalogue as if nodes of the usual size had it."""
    return tuple(_pool(gpu, gpu.gpus_per_node, prices or {}, None) for gpu in catalogue.gpus)


def _models(
    spec: LLMDeploymentSpec, catalogue: Catalogue, given: ModelFacts | None, errors: list[FieldError]
) -> tuple[ModelFacts, ...]:
    if given is not None:
        return (given,)
    if spec.model.size is not None:
        return _models_of_size(spec, catalogue, spec.model.size, errors)
    name = spec.model.id or ""
    match = catalogue.find_model(name)
    if match is None:
        errors.append(
            FieldError(
                "spec.model.id",
                name,
                "is not in the catalogue and its config.json was not read",
                _allowed_models(name, catalogue),
            )
        )
        return ()
    return (match.model,)


def _allowed_models(name: str, catalogue: Catalogue) -> str:
    """Listed names that look alike, and the other ways to state facts."""
    known = {
        listed.rpartition("/")[2].lower(): listed for model in catalogue.models for listed in (model.id, *model.aliases)
    }
    alike = difflib.get_close_matches(name.rpartition("/")[2].lower(), known, n=3, cutoff=0.7)
    listed = [known[match] for match in alike] or ["a model of the catalogue"]
    return ", ".join((*listed, "facts added to the catalogue", "trimtab plan --model-config or --hub"))


def _models_of_size(
    spec: LLMDeploymentSpec, catalogue: Catalogue, size: str, errors: list[FieldError]
) -> tuple[ModelFacts, ...]:
    of_size = catalogue.of_size(size)
    open_to_us = tuple(item for item in of_size if not item.gated or spec.model.token_secret_ref is not None)
    if spec.engine.type is EngineType.TGI:
        open_to_us = tuple(item for item in open_to_us if item.tgi_native)
    if not open_to_us:
        errors.append(
            FieldError(
                "spec.model.size",
                size,
                "every model of this size needs a Hub token",
                "model.tokenSecretRef, or model.id",
            )
        )
    return open_to_us


def _served_model(model_id: str | None) -> str | None:
    """The path inside the container of a model on a claim; None: the Hub id itself."""
    if model_id is None or not model_id.startswith("pvc://"):
        return None
    _, _, path = model_id.removeprefix("pvc://").partition("/")
    return f"/models/{path}"


def _pools(
    spec: LLMDeploymentSpec, catalogue: Catalogue, nodes: Iterable[NodeGpus] | None, errors: list[FieldError]
) -> tuple[GpuPool, ...]:
    prices = spec.hardware.price_per_gpu_hour
    for name in prices:
        if catalogue.gpu(name) is None:
            errors.append(_unknown_gpu("spec.hardware.pricePerGpuHour", name, catalogue))
    allowed: list[GpuFacts] = []
    for name in spec.hardware.gpu_products:
        gpu = catalogue.gpu(name)
        if gpu is None:
            errors.append(_unknown_gpu("spec.hardware.gpuProducts", name, catalogue))
        elif gpu not in allowed:
            allowed.append(gpu)
    if errors:
        return ()
    if nodes is None:
        offered = allowed or catalogue.gpus
        return tuple(_pool(gpu, gpu.gpus_per_node, prices, None) for gpu in offered)
    return _pools_of_nodes(nodes, catalogue, allowed, prices, errors)


def _pools_of_nodes(
    nodes: Iterable[NodeGpus],
    catalogue: Catalogue,
    allowed: list[GpuFacts],
    prices: Mapping[str, float],
    errors: list[FieldError],
) -> tuple[GpuPool, ...]:
    largest: dict[str, tuple[GpuFacts, int]] = {}
    present: set[str] = set()
    for node in nodes:
        present.add(node.product)
        gpu = catalogue.gpu(node.product)
        if gpu is None or (allowed and all(gpu.id != one.id for one in allowed)):
            continue
        most = largest.get(node.product, (gpu, 0))[1]
        largest[node.product] = (gpu, max(most, node.count))
    if not largest:
        wanted = ", ".join(gpu.id for gpu in allowed) or None
        seen = ", ".join(sorted(present)) or "no GPU"
        errors.append(
            FieldError("spec.hardware.gpuProducts", wanted, f"no node has such a GPU, the nodes have {seen}", seen)
        )
    return tuple(_pool(gpu, count, prices, label) for label, (gpu, count) in sorted(largest.items()))


def _pool(gpu: GpuFacts, count: int, prices: Mapping[str, float], label: str | None) -> GpuPool:
    own = {name.lower() for name in gpu.names}
    stated = [price for name, price in prices.items() if name.lower() in own]
    return GpuPool(gpu, count, stated[0] if stated else gpu.price_per_hour, label)


def _unknown_gpu(field: str, name: str, catalogue: Catalogue) -> FieldError:
    return FieldError(field, name, "is not a GPU of the catalogue", ", ".join(gpu.id for gpu in catalogue.gpus))
