"""`spec` of an LLMDeployment: what a person wants. Every field has a stated default or is chosen by the planner."""

import itertools
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trimtab.api.schema import ApiModel, Duration, Quantity, Rule, parse_duration


class EngineType(StrEnum):
    """Serving engines that Trimtab can run."""

    TGI = "tgi"
    VLLM = "vllm"


class Quantization(StrEnum):
    """`auto` lets the planner choose; the others are the engines' own names."""

    AUTO = "auto"
    NONE = "none"
    BITSANDBYTES = "bitsandbytes"
    BITSANDBYTES_NF4 = "bitsandbytes-nf4"
    BITSANDBYTES_FP4 = "bitsandbytes-fp4"
    EETQ = "eetq"
    FP8 = "fp8"
    AWQ = "awq"
    GPTQ = "gptq"
    MARLIN = "marlin"
    EXL2 = "exl2"
    COMPRESSED_TENSORS = "compressed-tensors"
    MXFP4 = "mxfp4"


class KvCacheDtype(StrEnum):
    """Number format of the KV cache; `auto` lets the planner choose, `model` keeps the model's own."""

    AUTO = "auto"
    MODEL = "model"
    FP8_E4M3FN = "fp8_e4m3fn"
    FP8_E5M2 = "fp8_e5m2"


class TuningMode(StrEnum):
    """What the tuner may do."""

    AUTO = "Auto"
    ADVISE = "Advise"
    OFF = "Off"


def _exactly_one_model(model: "Model") -> str | None:
    if (model.id is None) == (model.size is None):
        return "exactly one of id and size must be set"
    return None


def _one_cache(cache: "ModelCache") -> str | None:
    if cache.existing_claim is not None and (cache.size is not None or cache.storage_class_name is not None):
        return "existingClaim excludes size and storageClassName"
    return None


class SecretKeyRef(ApiModel):
    """A key of a Secret in the namespace of the LLMDeployment."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253)] = "token"
    """Key within the Secret."""


class ModelCache(ApiModel):
    """Where downloaded weights are kept. Default: an emptyDir that lives as long as the pod."""

    existing_claim: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """A PersistentVolumeClaim to use; Trimtab never deletes it."""
    size: Quantity | None = None
    """Size of a PersistentVolumeClaim to create (ReadWriteMany when maxReplicas exceeds 1)."""
    storage_class_name: str | None = None
    """StorageClass of the claim to create."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "existingClaim",
            "!(has(self.existingClaim) && (has(self.size) || has(self.storageClassName)))",
            "'existingClaim ' + self.existingClaim + ' excludes size and storageClassName: remove one of them'",
            _one_cache,
        ),
    )


class Model(ApiModel):
    """Which model to serve."""

    id: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=512,
                pattern=r"^(pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._-]+)+|[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?)$",
            ),
        ]
        | None
    ) = None
    """Hub id (`org/name`) or a folder on a claim (`pvc://claim/path`)."""
    size: Literal["small", "medium", "large"] | None = None
    """Instead of an id: let the planner pick a model of about 7B (small), 13B (medium) or 70B (large) parameters."""
    revision: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._/-]+$")] | None = None
    """Branch, tag or commit of the Hub repository. Pin a commit for reproducible rollouts."""
    token_secret_ref: SecretKeyRef | None = None
    """Hub token for gated models."""
    cache: ModelCache = ModelCache()
    """Volume for the weights."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "id",
            "has(self.id) != has(self.size)",
            "has(self.id) ? 'set either id (' + self.id + ') or size (' + self.size + '), not both'"
            " : 'set id to a Hub id such as org/name, or size to small, medium or large'",
            _exactly_one_model,
        ),
    )


class EnvVar(ApiModel):
    """One environment variable of the engine container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    """Name of the variable."""
    value: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Its value; engines parse an empty one as a value, so leave the variable out instead."""
    secret_key_ref: SecretKeyRef | None = None
    """Instead of a value: take it from a Secret."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "value",
            "has(self.value) != has(self.secretKeyRef)",
            "'environment variable ' + self.name + ' needs exactly one of value and secretKeyRef'",
            lambda env: (
                "exactly one of value and secretKeyRef must be set"
                if (env.value is None) == (env.secret_key_ref is None)
                else None
            ),
        ),
    )


class Engine(ApiModel):
    """Which server runs the model."""

    type: EngineType = EngineType.TGI
    """Serving engine. `tgi` is Text Generation Inference 3.3.7."""
    image: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+[:@][^\s:]+$")] | None = None
    """Image with a tag or digest; default: the release that Trimtab was tested with."""
    run_as_non_root: bool = False
    """Set when `image` can run without root (the public TGI images since 3.1 cannot)."""
    extra_args: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...], Field(max_length=64)] = ()
    """Launcher flags without a field of their own; checked against the engine's flag list."""
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """Environment of the engine container."""


class Toleration(ApiModel):
    """A Kubernetes toleration."""

    key: str | None = None
    """Key of the taint; none matches every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """How the taint is matched."""
    value: str | None = None
    """Value of the taint, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; none matches every effect."""
    toleration_seconds: int | None = None
    """With NoExecute: how long the pod may stay."""


class Hardware(ApiModel):
    """Which GPUs may be used."""

    gpu_products: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Allowed products: node label `nvidia.com/gpu.product` or catalogue name; default: what the nodes have."""
    gpus_per_replica: Annotated[int, Field(ge=1, le=16)] | None = None
    """GPUs (tensor-parallel shards) of one replica; default: chosen by the planner."""
    node_selector: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Only nodes with these labels."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Tolerations of the pods."""
    price_per_gpu_hour: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(max_length=32)] = {}
    """What one GPU of a product costs an hour; default: the catalogue's list prices."""


def _ordered_percentiles(target: "Percentiles") -> str | None:
    stated = [(name, parse_duration(text)) for name, text in target.stated().items()]
    for (low, low_value), (high, high_value) in itertools.pairwise(stated):
        if low_value > high_value:
            return f"{low} must not be longer than {high}"
    return None


class Percentiles(ApiModel):
    """Upper bounds at percentiles of all requests."""

    p50: Duration | None = None
    """Half of the requests are at most this slow."""
    p95: Duration | None = None
    """95 of 100 requests are at most this slow."""
    p99: Duration | None = None
    """99 of 100 requests are at most this slow."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "p50",
            "!has(self.p50) || !has(self.p95) || duration(self.p50) <= duration(self.p95)",
            "'p50 ' + self.p50 + ' must not be longer than p95 ' + self.p95",
            _ordered_percentiles,
        ),
        Rule(
            "p95",
            "!has(self.p95) || !has(self.p99) || duration(self.p95) <= duration(self.p99)",
            "'p95 ' + self.p95 + ' must not be longer than p99 ' + self.p99",
            _ordered_percentiles,
        ),
        Rule(
            "p50",
            "!has(self.p50) || !has(self.p99) || duration(self.p50) <= duration(self.p99)",
            "'p50 ' + self.p50 + ' must not be longer than p99 ' + self.p99",
            _ordered_percentiles,
        ),
    )

    def stated(self) -> dict[str, str]:
        """The percentiles that are set, in ascending order."""
        pairs = (("p50", self.p50), ("p95", self.p95), ("p99", self.p99))
        return {name: text for name, text in pairs if text is not None}

    def seconds(self) -> dict[float, float]:
        """Percentile (0.5, 0.95, 0.99) → seconds, for those that are set."""
        return {int(name[1:]) / 100: parse_duration(text) for name, text in self.stated().items()}


class Slo(ApiModel):
    """The service-level objective that the planner plans for and the tuner holds."""

    ttft: Percentiles = Percentiles()
    """Time to first token."""
    tpot: Percentiles = Percentiles()
    """Time per output token after the first."""
    latency: Percentiles = Percentiles()
    """Time from request to the last token."""


def _ordered_replicas(scaling: "Scaling") -> str | None:
    if scaling.min_replicas > scaling.max_replicas:
        return f"minReplicas {scaling.min_replicas} must not exceed maxReplicas {scaling.max_replicas}"
    return None


class Scaling(ApiModel):
    """Bounds within which the tuner sets the number of replicas."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Never fewer replicas than this."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Never more replicas than this."""
    max_hourly_cost: Annotated[float, Field(gt=0)] | None = None
    """Never more replicas than this buys, in the currency of the prices."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "minReplicas",
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "'minReplicas %d must not exceed maxReplicas %d: raise maxReplicas or lower minReplicas'"
            ".format([self.minReplicas, self.maxReplicas])",
            _ordered_replicas,
        ),
    )


class Batching(ApiModel):
    """Fixed batching settings of the engine; what is left out is chosen by the planner."""

    max_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Most requests in a batch."""
    max_batch_prefill_tokens: Annotated[int, Field(ge=1)] | None = None
    """Token budget of one prefill forward pass."""
    max_batch_total_tokens: Annotated[int, Field(ge=1)] | None = None
    """Token budget of a batch (padded models only; flash models measure it at warm-up)."""
    waiting_served_ratio: Annotated[float, Field(gt=0)] | None = None
    """Waiting over running requests from which the running batch pauses for a prefill."""
    max_waiting_tokens: Annotated[int, Field(ge=1)] | None = None
    """Decode steps after which waiting requests are forced into the batch."""
    max_concurrent_requests: Annotated[int, Field(ge=1)] | None = None
    """Requests that the engine accepts, queued or running, before it answers 429."""


def _ordered_tokens(context: "Context") -> str | None:
    if context.max_input_tokens is None or context.max_total_tokens is None:
        return None
    if context.max_input_tokens >= context.max_total_tokens:
        return (
            f"maxInputTokens {context.max_input_tokens} must be less than maxTotalTokens {context.max_total_tokens},"
            " which counts the answer too"
        )
    return None


class Context(ApiModel):
    """How long prompts and answers may be."""

    max_input_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt, in tokens."""
    max_total_tokens: Annotated[int, Field(ge=2)] | None = None
    """Longest prompt and answer together, in tokens; default: what the model and its memory allow."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "maxInputTokens",
            "!has(self.maxInputTokens) || !has(self.maxTotalTokens) || self.maxInputTokens < self.maxTotalTokens",
            "'maxInputTokens %d must be less than maxTotalTokens %d, which counts the answer too'"
            ".format([self.maxInputTokens, self.maxTotalTokens])",
            _ordered_tokens,
        ),
    )


class ExactCache(ApiModel):
    """Answers to requests seen before, byte for byte."""

    enabled: bool = True
    """Whether answers are kept."""
    max_bytes: Quantity = "256Mi"
    """Memory for answers in each pod."""
    max_entry_bytes: Quantity = "1Mi"
    """Longer answers are not kept."""
    ttl: Duration = "1h"
    """How long an answer may be reused."""


class Cache(ApiModel):
    """Response caching in the sidecar."""

    exact: ExactCache = ExactCache()
    """Exact cache; only complete, successful, deterministic answers are kept."""


class Rollout(ApiModel):
    """How pods are replaced when the plan changes."""

    surge: bool = True
    """Start the new pod before the old one stops. Set false where no GPU is free for it."""


def _ordered_limits(limits: "TuningLimits") -> str | None:
    if limits.max_in_flight is not None and limits.min_in_flight > limits.max_in_flight:
        return f"minInFlight {limits.min_in_flight} must not exceed maxInFlight {limits.max_in_flight}"
    return None


class TuningLimits(ApiModel):
    """Bounds of the live limit."""

    min_in_flight: Annotated[int, Field(ge=1)] = 1
    """Smallest number of requests in flight that the tuner may set for a pod."""
    max_in_flight: Annotated[int, Field(ge=1)] | None = None
    """Largest one; default: what the KV cache can hold."""
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "minInFlight",
            "!has(self.minInFlight) || !has(self.maxInFlight) || self.minInFlight <= self.maxInFlight",
            "'minInFlight %d must not exceed maxInFlight %d'.format([self.minInFlight, self.maxInFlight])",
            _ordered_limits,
        ),
    )


class Tuning(ApiModel):
    """What the tuner may do."""

    mode: TuningMode = TuningMode.AUTO
    """`Auto` acts, `Advise` writes decisions to status and changes nothing, `Off` does neither."""
    limits: TuningLimits = TuningLimits()
    """Bounds of the live limit on requests in flight."""


_FREE_FORM: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class PodTemplate(ApiModel):
    """The escape hatch: goes into the pods as it stands."""

    labels: Annotated[dict[str, str], Field(max_length=64)] = {}
    """More labels of the pods."""
    annotations: Annotated[dict[str, str], Field(max_length=64)] = {}
    """More annotations of the pods."""
    requests: Annotated[dict[str, str], Field(max_length=16)] = {}
    """Resource requests of the engine container besides the GPUs."""
    limits: Annotated[dict[str, str], Field(max_length=16)] = {}
    """Resource limits of the engine container besides the GPUs."""
    priority_class_name: str | None = None
    """PriorityClass of the pods."""
    runtime_class_name: str | None = None
    """RuntimeClass of the pods."""
    image_pull_secrets: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    """Names of Secrets for private registries."""
    shm_size: Quantity = "1Gi"
    """Size of /dev/shm, which shards use to talk; counts against the memory limit."""
    affinity: Annotated[dict[str, Any], Field(json_schema_extra=_FREE_FORM)] = {}
    """A Kubernetes affinity, passed on as it stands."""
    volumes: Annotated[
        tuple[dict[str, Any], ...],
        Field(max_length=32, json_schema_extra={"items": _FREE_FORM}),
    ] = ()
    """More volumes of the pods."""
    volume_mounts: Annotated[
        tuple[dict[str, Any], ...],
        Field(max_length=32, json_schema_extra={"items": _FREE_FORM}),
    ] = ()
    """Mounts of those volumes in the engine container."""


class LLMDeploymentSpec(ApiModel):
    """What a person wants: a model, an objective, a budget. The rest is chosen and explained."""

    model: Model
    """Which model to serve."""
    engine: Engine = Engine()
    """Which server runs it."""
    quantization: Quantization = Quantization.AUTO
    """Number format of the weights; `auto` lets the planner choose and say why."""
    kv_cache_dtype: KvCacheDtype = KvCacheDtype.AUTO
    """Number format of the KV cache."""
    hardware: Hardware = Hardware()
    """Which GPUs may be used."""
    slo: Slo = Slo()
    """The service-level objective."""
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Fixes the number of replicas (this is what `kubectl scale` sets); the tuner leaves it alone while it is set."""
    scaling: Scaling = Scaling()
    """Bounds for the number of replicas."""
    batching: Batching = Batching()
    """Fixed batching settings of the engine."""
    context: Context = Context()
    """Length of prompts and answers."""
    cache: Cache = Cache()
    """Response caching."""
    rollout: Rollout = Rollout()
    """How pods are replaced."""
    tuning: Tuning = Tuning()
    """What the tuner may do."""
    pod_template: PodTemplate = PodTemplate()
    """The escape hatch."""
