"""`status` of an LLMDeployment: what was decided, why, and what is true now. Written by the operator only."""

from typing import Annotated, Literal

from pydantic import Field

from trimtab.api.schema import ApiModel

MAX_DECISIONS = 20
MAX_REJECTED_OPTIONS = 40


class Condition(ApiModel):
    """A condition in the shape of `metav1.Condition`."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Name of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """One word for programs; docs/conditions.md lists them all."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """One sentence for people."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this was judged on."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""


class RejectedOption(ApiModel):
    """A configuration that the planner did not take."""

    option: str
    """Model, quantization, GPUs."""
    reason: str
    """Why not, and what would change that."""


class PlanStatus(ApiModel):
    """What the planner chose."""

    model: str
    """Model that is served."""
    engine: str
    """Engine and its version."""
    quantization: str
    """Number format of the weights."""
    kv_cache_dtype: str
    """Number format of the KV cache."""
    gpu: str
    """GPU product."""
    gpus_per_replica: int
    """Tensor-parallel shards."""
    max_input_tokens: int | None = None
    """Longest prompt."""
    max_total_tokens: int | None = None
    """Longest prompt and answer together."""
    kv_tokens: int
    """Tokens that the KV cache of one replica holds."""
    max_batch_within_slo: int
    """Largest batch whose predicted time per output token keeps the objective."""
    requests_per_second: float
    """Predicted capacity of one replica within the objective."""
    ttft_ms: float | None = None
    """Predicted time to first token."""
    tpot_ms: float | None = None
    """Predicted time per output token."""
    cost_per_hour: float | None = None
    """Cost of one replica."""
    cost_per_million_tokens: float | None = None
    """Cost of a million generated tokens at that capacity."""
    estimate: bool
    """True while the speed rests on scaled coefficients rather than on measurements of this pair of model and GPU."""
    launcher_args: tuple[str, ...] = ()
    """Command line of the engine."""
    reasons: tuple[str, ...] = ()
    """Why this configuration."""
    rejected: Annotated[tuple[RejectedOption, ...], Field(max_length=MAX_REJECTED_OPTIONS)] = ()
    """Why not the others, nearest first."""


class ObservedPercentiles(ApiModel):
    """Measured over the last window, in milliseconds."""

    p50: float | None = None
    """Median."""
    p95: float | None = None
    """95th percentile."""
    p99: float | None = None
    """99th percentile."""


class Observed(ApiModel):
    """What Prometheus measured."""

    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the values below were read."""
    ttft_ms: ObservedPercentiles = ObservedPercentiles()
    """Time to first token."""
    tpot_ms: ObservedPercentiles = ObservedPercentiles()
    """Time per output token."""
    latency_ms: ObservedPercentiles = ObservedPercentiles()
    """Time to the last token."""
    requests_per_second: float | None = None
    """Requests answered."""
    tokens_per_second: float | None = None
    """Tokens generated."""
    cache_hit_ratio: float | None = None
    """Share of the requests answered from the cache."""
    in_flight: float | None = None
    """Requests in flight to the engines."""
    queued: float | None = None
    """Requests waiting in the sidecars."""
    cost_per_hour: float | None = None
    """Cost of the replicas that run."""
    cost_per_million_tokens: float | None = None
    """That cost over the tokens generated."""


class DecisionStatus(ApiModel):
    """One decision of the tuner."""

    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it was taken."""
    lever: str
    """What was moved: `liveLimit`, `replicas`."""
    from_value: float | None = None
    """Value before."""
    to_value: float | None = None
    """Value after."""
    reason: str
    """One word for programs."""
    message: str
    """Why, in a sentence."""
    applied: bool
    """False in Advise mode, and where something forbade it."""
    inputs: dict[str, float] = {}
    """The measurements it rests on."""
    rejected: tuple[str, ...] = ()
    """Levers considered and not taken, with the reason."""
    expected: str = ""
    """Effect expected."""
    observed: str = ""
    """Effect measured later."""


class Calibration(ApiModel):
    """Step-time coefficients measured on the running deployment."""

    key: str
    """Model, quantization, GPU and settings that they were measured on."""
    const_ms: float
    """Fixed time of a decode step."""
    per_sequence_ms: float
    """Time added by each sequence of the batch."""
    per_kv_token_ms: float
    """Time added by each token in the KV cache."""
    per_prefill_token_ms: float | None = None
    """Time added by each prompt token in the same pass."""
    samples: int
    """Number of measurements behind them."""


class LLMDeploymentStatus(ApiModel):
    """What is true, and why."""

    observed_generation: int | None = None
    """Generation of the spec that this status describes."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """Ready, Progressing, Degraded, Planned, SLOMet and more."""
    replicas: int | None = None
    """Pods that exist."""
    ready_replicas: int | None = None
    """Pods that serve."""
    desired_replicas: int | None = None
    """Pods that are wanted: fixed by the spec or decided by the tuner."""
    live_limit: int | None = None
    """Requests in flight that each sidecar lets through to its engine."""
    selector: str | None = None
    """Label selector of the pods, for the scale subresource."""
    plan: PlanStatus | None = None
    """What was chosen."""
    observed: Observed | None = None
    """What was measured."""
    decisions: Annotated[tuple[DecisionStatus, ...], Field(max_length=MAX_DECISIONS)] = ()
    """The last decisions, newest first."""
    calibration: Calibration | None = None
    """Measured speed."""
