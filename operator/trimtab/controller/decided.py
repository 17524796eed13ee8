"""What the operator has decided for an LLMDeployment, kept where a restarted operator finds it.

The record is an annotation of the child Deployment, written in the same request as what it decides, so that a crash
between two writes never leaves them apart. Status is its mirror, and the fallback when the Deployment was deleted.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.controller.difference import fingerprint
from trimtab.controller.objects import DECIDED_ANNOTATION, Manifest, owner_uids
from trimtab.plan.types import Calibration
from trimtab.resources.sidecar_config import LiveSettings


@dataclass(frozen=True, slots=True)
class Choice:
    """The planner's choice, kept as long as the spec asks for the same: a node that comes or goes moves no pod."""

    asked: str
    """Fingerprint of what the planner was asked (`asked_of`)."""
    model: str
    gpu: str
    gpus_per_replica: int
    quantization: str
    kv_dtype: str
    calibrations: tuple[Calibration, ...] = ()
    """Measured speeds that were known then. They stay with the choice: what is measured later changes later plans,
    never the command line of pods that run."""

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "calibrations"}
        return {**plain, **({"calibrations": [asdict(one) for one in self.calibrations]} if self.calibrations else {})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From the record; raises KeyError when something is missing."""
        measured = tuple(Calibration(**one) for one in value.get("calibrations") or ())
        plain = {name: value[name] for name in cls.__slots__ if name != "calibrations"}
        return cls(**plain, calibrations=measured)


def asked_of(spec: LLMDeploymentSpec) -> str:
    """Fingerprint of the parts of a spec that decide what is planned, as opposed to how many and how they are run."""
    asked = {"model", "engine", "quantization", "kv_cache_dtype", "hardware", "slo", "batching", "context"}
    return fingerprint(spec.model_dump(mode="json", include=asked))


@dataclass(frozen=True, slots=True)
class Decided:
    """The recorded decisions."""

    replicas: int | None = None
    """Pods wanted by the tuner; None: not decided yet."""
    live: LiveSettings = field(default_factory=LiveSettings)
    choice: Choice | None = None

    def to_annotation(self) -> str:
        """The record as text."""
        choice = self.choice.to_json() if self.choice else None
        record = {"replicas": self.replicas, "live": asdict(self.live), "choice": choice}
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_annotation(cls, text: str) -> Self:
        """From the record; raises ValueError when it is not readable."""
        try:
            record = json.loads(text)
            choice = record.get("choice")
            return cls(
                replicas=int(record["replicas"]) if record.get("replicas") is not None else None,
                live=LiveSettings(**(record.get("live") or {})),
                choice=Choice.from_json(choice) if choice else None,
            )
        except (AttributeError, KeyError, TypeError) as wrong:
            raise ValueError(f"unreadable record: {wrong!r}") from wrong


def recall(resource: Manifest, deployment: Manifest | None) -> Decided:
    """What an earlier run of the operator decided: from the Deployment if it belongs to this very resource (not to a
    deleted namesake), else from status, else nothing."""
    uid = resource["metadata"]["uid"]
    if deployment is not None and uid in owner_uids(deployment):
        text = (deployment["metadata"].get("annotations") or {}).get(DECIDED_ANNOTATION)
        if text is not None:
            try:
                return Decided.from_annotation(text)
            except ValueError:
                # Edited by hand; status still knows.
                pass
    status = resource.get("status") or {}
    return Decided(replicas=status.get("desiredReplicas"), live=LiveSettings(max_in_flight=status.get("liveLimit")))


def clamp_replicas(spec: LLMDeploymentSpec, decided: int | None) -> int:
    """Pods to run: what the spec fixes, else what was decided within the spec's bounds, else the least."""
    if spec.replicas is not None:
        return spec.replicas
    low, high = spec.scaling.min_replicas, spec.scaling.max_replicas
    return min(max(decided if decided is not None else low, low), high)


def clamp_live(spec: LLMDeploymentSpec, live: LiveSettings, first_limit: int) -> LiveSettings:
    """The live settings within the spec's bounds; before any decision the planner's largest batch within the SLO."""
    limits = spec.tuning.limits
    limit = max(live.max_in_flight if live.max_in_flight is not None else first_limit, limits.min_in_flight)
    if limits.max_in_flight is not None:
        limit = min(limit, limits.max_in_flight)
    return replace(live, max_in_flight=limit)
