"""Pure: the whole status of an LLMDeployment, and what changed in it that is worth an event."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.api import API_VERSION, KIND
from trimtab.controller.book import Record, calibration_status
from trimtab.controller.objects import MANAGED_BY_LABEL, OWNER_LABEL, Manifest
from trimtab.controller.reasons import ConditionType
from trimtab.controller.status import Facts, conditions_of
from trimtab.resources.identity import shortened

_OURS = {kind.value for kind in ConditionType}


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened, for an Event."""

    kind: str
    """`Normal` or `Warning`."""
    reason: str
    action: str
    """What the operator was doing, in UpperCamelCase."""
    text: str


def selector_of(name: str) -> str:
    """Label selector of the pods, for the scale subresource."""
    return f"{MANAGED_BY_LABEL}=trimtab,{OWNER_LABEL}={shortened(name)}"


def build_status(
    resource: Manifest,
    facts: Facts,
    record: Record,
    plan: Mapping[str, Any] | None,
    live_limit: int | None,
    now: str,
) -> Manifest:
    """`status` as it should be stored. `plan` is that of what runs or is about to."""
    status: Manifest = {
        "observedGeneration": facts.generation,
        "conditions": conditions_of(facts, now),
        "replicas": facts.pods.total,
        "readyReplicas": facts.pods.ready,
        "desiredReplicas": facts.desired_replicas,
        "selector": selector_of(resource["metadata"]["name"]),
    }
    optional: dict[str, Any] = {
        "liveLimit": live_limit,
        "plan": plan,
        "observed": record.observed,
        "decisions": list(record.decisions),
        "calibration": calibration_status(record.calibration),
    }
    return status | {name: value for name, value in optional.items() if value}


def same_status(wanted: Manifest, stored: Manifest | None) -> bool:
    """Whether a write would change nothing; conditions of other writers do not count."""
    stored = dict(stored or {})
    stored["conditions"] = [item for item in stored.get("conditions") or () if item["type"] in _OURS]
    return wanted == stored


def status_manifest(resource: Manifest, status: Manifest) -> Manifest:
    """What is applied to the status subresource: only to the very state that was judged, not to a later one and not
    to a namesake."""
    metadata = {name: resource["metadata"][name] for name in ("name", "namespace", "resourceVersion")}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status}


# Condition → what an event about it says was being done, and the status that is bad news.
_TOLD: Mapping[str, tuple[str, str]] = {
    ConditionType.READY: ("Serve", "False"),
    ConditionType.DEGRADED: ("Serve", "True"),
    ConditionType.PLANNED: ("Plan", "False"),
    ConditionType.SLO_MET: ("Measure", "False"),
    ConditionType.METRICS_AVAILABLE: ("Measure", "False"),
    ConditionType.PAUSED: ("Pause", ""),
}


def transitions(before: Mapping[str, Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[Note]:
    """Events for conditions that became true, false, or differently so; one per reason."""
    notes: dict[str, Note] = {}
    for condition in after:
        told, known = _TOLD.get(condition["type"]), before.get(condition["type"])
        if told is None or not _news(condition, known):
            continue
        action, bad = told
        kind = "Warning" if condition["status"] == bad and condition["type"] != ConditionType.READY else "Normal"
        notes.setdefault(condition["reason"], Note(kind, condition["reason"], action, condition["message"]))
        if kind == "Warning":
            notes[condition["reason"]] = Note(kind, condition["reason"], action, condition["message"])
    return list(notes.values())


def _news(condition: Mapping[str, Any], known: Mapping[str, Any] | None) -> bool:
    if known is None:
        # What is as it should be from the start is no news.
        return condition["status"] != "Unknown" and condition["reason"] not in ("NotPaused", "AsExpected", "NoSLO")
    return (known["status"], known["reason"]) != (condition["status"], condition["reason"])
