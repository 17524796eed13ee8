"""The planner's front door: the controller and `trimtab plan` both come in here."""

from collections.abc import Iterable

from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.catalog.catalogue import Catalogue
from trimtab.catalog.models import ModelFacts
from trimtab.engines.registry import ENGINES
from trimtab.plan.choose import plan
from trimtab.plan.from_spec import NodeGpus, request_from_spec
from trimtab.plan.nearest import with_nearest
from trimtab.plan.steps import step_coefficients
from trimtab.plan.types import Calibration, PlanRequest, PlanResult


def plan_spec(
    spec: LLMDeploymentSpec,
    catalogue: Catalogue,
    nodes: Iterable[NodeGpus] | None = None,
    model: ModelFacts | None = None,
    calibrations: tuple[Calibration, ...] = (),
) -> PlanResult:
    """A configuration for a spec, or errors that say what to change.

    `nodes` are those on which pods may run (None: unknown, the whole catalogue is assumed); `model` are facts from the
    model's own files. Never raises for what a user wrote: invalid specs come back as `errors` without options,
    specs that nothing fits as `errors` with the options that were looked at, nearest first.
    """
    try:
        request = request_from_spec(spec, catalogue, nodes, model, calibrations)
    except InvalidSpecError as invalid:
        return PlanResult(plan=None, errors=invalid.errors)
    return plan_request(request)


def plan_request(request: PlanRequest) -> PlanResult:
    """As `plan_spec`, for a request that is already complete."""
    engine = ENGINES.get(request.engine)
    if engine is None:
        unknown = FieldError("spec.engine.type", request.engine, "is no engine here", ", ".join(sorted(ENGINES)))
        return PlanResult(plan=None, errors=(unknown,))
    result = plan(request, engine, step_coefficients)
    return with_nearest(request, result, engine, step_coefficients, ENGINES)
