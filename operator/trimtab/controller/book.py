"""What the operator keeps of each LLMDeployment in memory between visits; all of it can be recalled after a restart."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError

from trimtab.api.status import MAX_DECISIONS
from trimtab.api.status import Calibration as Stored
from trimtab.controller.decided import Decided, recall
from trimtab.controller.objects import Key, Manifest
from trimtab.controller.reasons import Finding
from trimtab.controller.status import NOT_MEASURED
from trimtab.plan.from_spec import calibrations_of
from trimtab.plan.types import Calibration

MAX_CALIBRATIONS = 16
"""More would not fit well into the annotation that keeps them with a choice."""


def settle(known: Finding | None, found: Finding, *, refresh: bool = False) -> Finding:
    """The known finding while only the figures in its sentence changed: those are refreshed with `status.observed`."""
    if known is not None and not refresh and (known.status, known.reason) == (found.status, found.reason):
        return known
    return found


@dataclass(slots=True)
class Record:
    """One LLMDeployment. Visits and the tuning loop share it; both run on one event loop and never await in between
    reading and writing a field."""

    uid: str
    decided: Decided
    metrics: Finding = NOT_MEASURED.metrics
    slo: Finding = NOT_MEASURED.slo
    hold: Finding | None = None
    """Why the tuner decides nothing; None: it is in action, or has not looked yet (`looked`)."""
    looked: bool = False
    observed: dict[str, Any] | None = None
    """`status.observed`."""
    decisions: tuple[dict[str, Any], ...] = ()
    """`status.decisions`, newest first."""
    calibration: Calibration | None = None
    """The measured speed."""
    memory: Any = None
    """The tuner's own."""

    def go_blind(self, finding: Finding) -> None:
        """There are no metrics: hold what is, and say so."""
        slo = Finding("Unknown", finding.reason, "The objective cannot be judged without metrics.")
        self.looked = True
        self.metrics = settle(self.metrics, finding)
        self.hold = settle(self.hold, finding)
        self.slo = settle(self.slo, slo)

    def add_decision(self, decision: dict[str, Any]) -> None:
        """Put a decision before the others and drop the oldest ones."""
        self.decisions = (decision, *self.decisions)[:MAX_DECISIONS]


@dataclass(slots=True)
class Book:
    """All records."""

    records: dict[Key, Record] = field(default_factory=dict)
    blind: Finding | None = None
    """Why no deployment will ever be measured by this process; None: they will be."""

    def open(self, key: Key, resource: Manifest, deployment: Manifest | None) -> Record:
        """The record of a resource; recalled from the cluster when it is new here, or new under an old name."""
        uid = resource["metadata"]["uid"]
        record = self.records.get(key)
        if record is None or record.uid != uid:
            status = resource.get("status") or {}
            record = Record(
                uid=uid,
                decided=recall(resource, deployment),
                observed=status.get("observed"),
                decisions=tuple(status.get("decisions") or ()),
                calibration=_recall_calibration(status.get("calibration")),
            )
            _recall_findings(record, status)
            if self.blind is not None:
                record.go_blind(self.blind)
            self.records[key] = record
        return record

    def calibrations(self) -> tuple[Calibration, ...]:
        """Speeds measured on the deployments that run, one a key: that with the most samples; ordered by key."""
        best: dict[str, Calibration] = {}
        for record in self.records.values():
            found = record.calibration
            if found is not None and (found.key not in best or found.samples > best[found.key].samples):
                best[found.key] = found
        return tuple(best[key] for key in sorted(best))[:MAX_CALIBRATIONS]

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self.records.pop(key, None)


def _recall_calibration(stored: dict[str, Any] | None) -> Calibration | None:
    """What `status.calibration` says; None when there is none, or none that can be read."""
    if stored is None:
        return None
    try:
        return calibrations_of(Stored.model_validate(stored))[0]
    except ValidationError:
        return None


def calibration_status(measured: Calibration | None) -> dict[str, Any] | None:
    """`status.calibration`."""
    if measured is None:
        return None
    plain = {name: value for name, value in asdict(measured).items() if name in Stored.model_fields}
    return Stored.model_validate(plain).model_dump(by_alias=True, exclude_none=True)


def _recall_findings(record: Record, status: dict[str, Any]) -> None:
    # Without this the first status after a restart would say "not measured yet" where the last one knew better.
    for condition in status.get("conditions") or ():
        found = Finding(condition["status"], condition["reason"], condition.get("message", ""))
        match condition["type"]:
            case "SLOMet":
                record.slo = found
            case "MetricsAvailable":
                record.metrics = found
            case "TuningActive" if condition["status"] != "Unknown":
                record.looked = True
                record.hold = found if condition["status"] == "False" else None
