"""Notices when somebody else scales our Deployment, without watching a further kind."""

from dataclasses import dataclass, field

from trimtab.controller.clock import Clock
from trimtab.controller.kube import ApiFailure, Forbidden, KubeClient
from trimtab.controller.objects import AUTOSCALER, DEPLOYMENT, Manifest, Ref, ref_of, scaled_by

_REMEMBER_SECONDS = 60.0


@dataclass(slots=True)
class Autoscalers:
    """An autoscaler (KEDA's are HorizontalPodAutoscalers too) leaves its mark in the managed fields of what it scales:
    only where that mark stands are the autoscalers of the namespace listed, and the answer is kept for a minute."""

    kube: KubeClient
    clock: Clock
    _known: dict[Ref, tuple[float, str]] = field(default_factory=dict)

    async def foreign(self, deployment: Manifest) -> str:
        """Name of the autoscaler that targets the Deployment; empty: none."""
        ref = ref_of(deployment, DEPLOYMENT)
        if not scaled_by(deployment):
            self._known.pop(ref, None)
            return ""
        now = self.clock.monotonic()
        asked, name = self._known.get(ref, (float("-inf"), ""))
        if now - asked >= _REMEMBER_SECONDS:
            name = await self._ask(ref, name)
            self._known[ref] = (now, name)
        return name

    async def _ask(self, ref: Ref, last: str) -> str:
        try:
            listing = await self.kube.list_all(AUTOSCALER, ref.namespace)
        except Forbidden:
            # The mark is there and nobody may be asked: better not to fight.
            return "(unknown: the operator may not list HorizontalPodAutoscalers)"
        except ApiFailure:
            return last
        for autoscaler in listing.items:
            target = autoscaler["spec"]["scaleTargetRef"]
            if (target.get("kind"), target.get("name")) == (DEPLOYMENT.name, ref.name):
                return str(autoscaler["metadata"]["name"])
        return ""
