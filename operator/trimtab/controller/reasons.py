"""Types and reasons of conditions. docs/conditions.md explains each; a test holds the two together."""

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """What an LLMDeployment says about itself, in the order in which it is reported."""

    READY = "Ready"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    STALLED = "Stalled"
    PLANNED = "Planned"
    SLO_MET = "SLOMet"
    METRICS_AVAILABLE = "MetricsAvailable"
    TUNING_ACTIVE = "TuningActive"
    PAUSED = "Paused"


class Reason(StrEnum):
    """One word for programs; the sentence beside it is for people."""

    SERVING = "Serving"
    PARTLY_SERVING = "PartlyServing"
    INVALID_SPEC = "InvalidSpec"
    NO_FEASIBLE_PLAN = "NoFeasiblePlan"
    LOOKING_UP_MODEL = "LookingUpModel"
    PLANNED = "Planned"
    PAUSED = "Paused"
    NOT_PAUSED = "NotPaused"
    NAME_TAKEN = "NameTaken"
    FORBIDDEN = "Forbidden"
    REFUSED = "Refused"
    FIELD_CONFLICT = "FieldConflict"
    API_UNAVAILABLE = "ApiUnavailable"
    SCALED_TO_ZERO = "ScaledToZero"
    STARTING = "Starting"
    CREATING = "Creating"
    CRASH_LOOP = "CrashLoopBackOff"
    OUT_OF_MEMORY = "OOMKilled"
    ENGINE_FAILED = "EngineFailed"
    IMAGE_PULL = "ImagePullBackOff"
    UNSCHEDULABLE = "Unschedulable"
    CONTAINER_CONFIG = "ContainerConfigError"
    EVICTED = "Evicted"
    PODS_NOT_CREATED = "PodsNotCreated"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_STUCK = "RolloutStuck"
    SCALING_UP = "ScalingUp"
    SCALING_DOWN = "ScalingDown"
    UP_TO_DATE = "UpToDate"
    AS_EXPECTED = "AsExpected"
    NOT_STALLED = "NotStalled"
    SLO_MET = "SLOMet"
    SLO_MISSED = "SLOMissed"
    NO_SLO = "NoSLO"
    NO_TRAFFIC = "NoTraffic"
    METRICS_FRESH = "MetricsFresh"
    METRICS_MISSING = "MetricsMissing"
    METRICS_STALE = "MetricsStale"
    PROMETHEUS_UNREACHABLE = "PrometheusUnreachable"
    PROMETHEUS_UNSET = "PrometheusNotConfigured"
    NOT_MEASURED_YET = "NotMeasuredYet"
    TUNING = "Tuning"
    ADVISING = "Advising"
    TUNING_OFF = "TuningOff"
    REPLICAS_FIXED = "ReplicasFixed"
    TUNER_FAILED = "TunerFailed"
    FOREIGN_AUTOSCALER = "ForeignAutoscaler"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: a reason and a sentence. `status` is that of the condition it decides."""

    status: str
    reason: str
    """A Reason, or a word of the tuner or of an engine."""
    message: str
