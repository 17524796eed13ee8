"""`render`: everything that an LLMDeployment becomes."""

from collections.abc import Mapping
from typing import Any

from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.engines.registry import get_engine
from trimtab.plan.types import ServingPlan
from trimtab.resources.deployment import build_deployment
from trimtab.resources.disruption_budget import build_disruption_budget
from trimtab.resources.identity import Manifest, Owner, fingerprint, pod_labels
from trimtab.resources.service import build_service
from trimtab.resources.service_account import build_service_account
from trimtab.resources.sidecar_config import LiveSettings, build_config_map, live_config, sidecar_config
from trimtab.resources.volumes import build_claim, volume_problems

DEFAULT_SIDECAR_IMAGE = "ghcr.io/trimtab/sidecar:0.1.0"


def render(
    owner: Owner,
    spec: LLMDeploymentSpec,
    plan: ServingPlan,
    replicas: int | None,
    live: LiveSettings | None = None,
    *,
    sidecar_image: str = DEFAULT_SIDECAR_IMAGE,
    running: Mapping[str, Any] | None = None,
) -> tuple[Manifest, ...]:
    """The manifests, in the order in which they should be applied; the same input gives the same output.

    `replicas` and `live` are decisions of the tuner (or of the spec); with `replicas` None the field is left out, for
    another autoscaler to own. `running` is the Deployment that is in the cluster now, if any (see `build_deployment`).
    Raises InvalidSpecError when the escape hatch `podTemplate` collides
    with what Trimtab itself sets.
    """
    engine = get_engine(plan.option.engine)
    problems = (*volume_problems(spec, engine.container), *_label_problems(owner, spec))
    if problems:
        raise InvalidSpecError(problems)
    config = sidecar_config(spec, plan)
    deployment = build_deployment(
        owner, spec, plan, engine, replicas, fingerprint(config), sidecar_image, dict(running) if running else None
    )
    claim = build_claim(owner, spec)
    return (
        build_service_account(owner),
        build_config_map(owner, config, live_config(plan, live or LiveSettings())),
        *((claim,) if claim is not None else ()),
        build_service(owner),
        build_disruption_budget(owner),
        deployment,
    )


def _label_problems(owner: Owner, spec: LLMDeploymentSpec) -> tuple[FieldError, ...]:
    ours = pod_labels(owner)
    labels = [
        FieldError(f"spec.podTemplate.labels.{name}", value, "is set by Trimtab", "another label")
        for name, value in spec.pod_template.labels.items()
        if name in ours
    ]
    annotations = [
        FieldError(f"spec.podTemplate.annotations.{name}", value, "is reserved", "not below trimtab.dev/")
        for name, value in spec.pod_template.annotations.items()
        if name.startswith("trimtab.dev/")
    ]
    return (*labels, *annotations)
