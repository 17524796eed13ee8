"""The renderer as the controller uses it."""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.controller.objects import DEPLOYMENT, Manifest
from trimtab.controller.seams import Planned
from trimtab.resources.identity import Owner
from trimtab.resources.render import render
from trimtab.resources.sidecar_config import LiveSettings


@dataclass(frozen=True, slots=True)
class ChildRenderer:
    """Renderer of `trimtab.controller.seams` over the pure builders."""

    sidecar_image: str

    def __call__(
        self,
        resource: Manifest,
        spec: LLMDeploymentSpec,
        planned: Planned,
        replicas: int | None,
        live: LiveSettings,
        running: Manifest | None,
    ) -> Sequence[Manifest]:
        if planned.plan is None:
            raise ValueError("nothing to render without a plan")
        metadata = resource["metadata"]
        owner = Owner(metadata["name"], metadata["namespace"], metadata["uid"])
        manifests = render(
            owner, spec, planned.plan, replicas or 0, live, sidecar_image=self.sidecar_image, running=running
        )
        return manifests if replicas is not None else tuple(_without_replicas(manifest) for manifest in manifests)


def _without_replicas(manifest: Manifest) -> Manifest:
    if manifest["kind"] != DEPLOYMENT.name:
        return manifest
    return {**manifest, "spec": {name: value for name, value in manifest["spec"].items() if name != "replicas"}}
