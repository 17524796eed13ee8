"""Where the pure packages plug into the controller: `trimtab.controller.wiring` plugs in the real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.controller.decided import Choice
from trimtab.controller.objects import Manifest
from trimtab.engines.base import FailurePattern
from trimtab.plan.types import Calibration, ServingPlan
from trimtab.resources.sidecar_config import LiveSettings


@dataclass(frozen=True, slots=True)
class Planned:
    """The planner's answer, ready for status."""

    plan: ServingPlan | None
    choice: Choice | None = None
    problem: str = ""
    """Why there is no plan, with the nearest options; empty: there is one."""
    pending: bool = False
    """There will be an answer without anybody doing anything."""
    summary: str = ""
    """One sentence about what was chosen."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """`status.plan`."""
    first_limit: int = 1
    """Requests in flight for each pod before anything was measured."""
    cost_per_hour: float | None = None
    """Of one replica."""
    failures: tuple[FailurePattern, ...] = ()
    """Known ends of the engine."""


class Planner(Protocol):
    """Plans and remembers plans; asking twice for the same costs nothing."""

    def plan(
        self,
        spec: LLMDeploymentSpec,
        nodes: Sequence[Manifest],
        choice: Choice | None,
        *,
        serving: bool,
        calibrations: tuple[Calibration, ...] = (),
    ) -> Planned:
        """The plan for a spec; `calibrations` are speeds measured on deployments that run, for a new choice.

        An earlier choice for the same question stands as long as it can work. When it cannot and pods are `serving`
        with it, there is no plan rather than another one: losing sight of a node must not restart what runs.
        """


class Renderer(Protocol):
    """Makes the children."""

    def __call__(
        self,
        resource: Manifest,
        spec: LLMDeploymentSpec,
        planned: Planned,
        replicas: int | None,
        live: LiveSettings,
        running: Manifest | None,
    ) -> Sequence[Manifest]:
        """All children of a resource with its plan, owned by it.

        `replicas` None: leave the field out, another autoscaler owns it. `running` is the Deployment in the cluster.
        Same arguments, same manifests. Raises InvalidSpecError where the spec collides with what Trimtab sets.
        """
