"""What goes into the planner and what comes out: plain values, no I/O, no clock."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.api.errors import FieldError
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines.base import BatchSettings, EngineSettings

__all__ = [
    "Calibration",
    "FieldError",
    "GpuPool",
    "Load",
    "Option",
    "PlanRequest",
    "PlanResult",
    "Rejection",
    "RejectionKind",
    "ServingPlan",
    "SloTargets",
    "StepCoefficients",
]


@dataclass(frozen=True, slots=True)
class GpuPool:
    """GPUs of one product that a replica may use."""

    gpu: GpuFacts
    gpus_per_node: int
    """Most GPUs of this product in one node; all shards of a replica sit in one node."""
    price_per_hour: float | None
    """Of one GPU; None: unknown, such options come after those with a price."""
    product_label: str | None = None
    """Value of the nodes' product label; None: not planned from nodes."""


@dataclass(frozen=True, slots=True)
class SloTargets:
    """Percentile (0.5, 0.95, 0.99) → seconds, for each metric. Empty: no objective."""

    ttft: Mapping[float, float] = field(default_factory=dict)
    tpot: Mapping[float, float] = field(default_factory=dict)
    latency: Mapping[float, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ttft or self.tpot or self.latency)


@dataclass(frozen=True, slots=True)
class Load:
    """What requests look like on average.

    Defaults: means of the Azure LLM inference trace 2023, conversation part (Azure/AzurePublicDataset, CC-BY-4.0).
    """

    input_tokens: int = 1155
    output_tokens: int = 211

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class StepCoefficients:
    """Linear form of the time of one forward pass, which the tuner refines.

    step_ms = const_ms + per_sequence_ms x sequences + per_kv_token_ms x cached tokens of all sequences
    (+ per_prefill_token_ms x prompt tokens in the same pass, + per_prefill_token_squared_ms x their square).
    """

    const_ms: float
    per_sequence_ms: float
    per_kv_token_ms: float
    per_prefill_token_ms: float
    per_prefill_token_squared_ms: float = 0.0
    """Attention of long prompts."""
    estimate: bool = True
    """True: scaled from another pair of model and GPU; False: published or measured for this one."""
    source: str = ""
    """Where the figures come from."""

    def decode_ms(self, sequences: float, kv_tokens: float) -> float:
        """Time of a decode step."""
        return self.const_ms + self.per_sequence_ms * sequences + self.per_kv_token_ms * kv_tokens

    def prefill_ms(self, tokens: float) -> float:
        """Time that a prompt adds to the passes that work on it."""
        return (self.per_prefill_token_ms + self.per_prefill_token_squared_ms * tokens) * tokens


@dataclass(frozen=True, slots=True)
class Calibration:
    """Coefficients measured on a running deployment; replaces estimates for the same `key`."""

    key: str
    """As `trimtab.plan.performance.calibration_key` makes it: model, quantization, GPU and settings."""
    const_ms: float
    per_sequence_ms: float
    per_kv_token_ms: float
    per_prefill_token_ms: float | None = None
    kv_tokens: int | None = None
    """KV capacity that the engine reported; replaces the memory model's."""
    samples: int = 0


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan, independent of the engine's own flag names."""

    models: tuple[ModelFacts, ...]
    """Candidates; more than one when the planner may pick by size."""
    pools: tuple[GpuPool, ...]
    """Where replicas may run; empty only when nothing is allowed."""
    engine: str = "tgi"
    """Name of the engine in `trimtab.engines`."""
    engine_image: str | None = None
    """None: the release that Trimtab was tested with."""
    served_model: str | None = None
    """What the engine is told to load (Hub id or path), when not the model's own id."""
    revision: str | None = None
    gpus_per_replica: int | None = None
    """None: the planner chooses."""
    quantization: str = "auto"
    kv_cache_dtype: str = "auto"
    slo: SloTargets = field(default_factory=SloTargets)
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    load: Load = field(default_factory=Load)
    batching: BatchSettings = field(default_factory=BatchSettings)
    """Settings that the spec fixes; None: the planner or the engine chooses."""
    max_quality_loss: float | None = None
    """Points of the published benchmark average that quantization may cost; None: the planner's default."""
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: frozenset[str] = frozenset()
    """Names of variables whose values come from Secrets."""
    calibrations: tuple[Calibration, ...] = ()
    alternatives: tuple[GpuPool, ...] = ()
    """Pools that are not allowed but may be suggested when nothing fits."""


class RejectionKind(enum.IntEnum):
    """Why an option was not taken; a lower value is nearer to working."""

    DEARER = 1
    """It would work; another one is cheaper or better."""
    QUALITY = 2
    """It loses more quality than allowed."""
    SLO = 3
    """It fits, but is too slow."""
    MEMORY = 4
    """It does not fit."""
    RULE = 5
    """The engine, the checkpoint or the GPU cannot do it."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an option was not taken, and what would change that."""

    kind: RejectionKind
    reason: str


@dataclass(frozen=True, slots=True)
class Option:
    """One configuration and what is predicted of it. `to_json` is a stable format."""

    model: str
    engine: str
    quantization: str
    gpu: str
    gpus_per_replica: int
    kv_dtype: str
    fits: bool
    """Weights and one request of the full length fit in memory, and no rule forbids it."""
    weights_bytes: int
    """On the fullest GPU."""
    overhead_bytes: int
    """On that GPU: runtime, communication, activations, reserve."""
    kv_tokens: int
    """Tokens that the KV cache of one replica holds, as the engine would report it."""
    max_batch_at_context: int
    """Requests of the full length that the KV cache holds at once."""
    ttft_ms: float | None
    tpot_ms: float | None
    requests_per_second: float | None
    """Of one replica, within the SLO."""
    tokens_per_second: float | None
    """Generated tokens of one replica, within the SLO."""
    cost_per_million_tokens: float | None
    """Of generated tokens; None without a price."""
    launcher_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    """Why it was taken, or why not and what would change that."""

    @property
    def label(self) -> str:
        """`model quantization count x GPU`, for tables and status."""
        return f"{self.model} {self.quantization} {self.gpus_per_replica}x{self.gpu} kv={self.kv_dtype}"

    def to_json(self) -> dict[str, Any]:
        """The OPTION object of `trimtab plan -o json`."""
        return {
            "model": self.model,
            "engine": self.engine,
            "quantization": self.quantization,
            "gpu": self.gpu,
            "gpusPerReplica": self.gpus_per_replica,
            "kvDtype": self.kv_dtype,
            "fits": self.fits,
            "weightsBytes": self.weights_bytes,
            "overheadBytes": self.overhead_bytes,
            "kvTokens": self.kv_tokens,
            "maxBatchAtContext": self.max_batch_at_context,
            "ttftMs": self.ttft_ms,
            "tpotMs": self.tpot_ms,
            "requestsPerSecond": self.requests_per_second,
            "tokensPerSecond": self.tokens_per_second,
            "costPerMillionTokens": self.cost_per_million_tokens,
            "launcherArgs": list(self.launcher_args),
            "env": dict(self.env),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """A configuration that works: everything that renders into pods and that the tuner starts from."""

    option: Option
    model: ModelFacts
    pool: GpuPool
    settings: EngineSettings
    """Engine-neutral settings from which the container is rendered."""
    max_input_tokens: int
    max_total_tokens: int
    kv_tokens: int
    max_batch_within_slo: int
    """Largest batch that keeps time per output token within the SLO and fits the KV cache; the tuner's first limit."""
    requests_per_second: float
    """Of one replica, within the SLO."""
    tokens_per_second: float
    step: StepCoefficients
    calibration_key: str
    cost_per_hour: float | None
    """Of one replica."""
    estimate: bool
    """The speed rests on scaled coefficients."""
    warnings: tuple[str, ...] = ()
    """What works but should be known, for events and conditions."""

    @property
    def launcher_args(self) -> tuple[str, ...]:
        """Command line of the engine."""
        return self.option.launcher_args

    @property
    def env(self) -> Mapping[str, str]:
        """Environment of the engine."""
        return self.option.env


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The answer of the planner: a plan, or why there is none."""

    plan: ServingPlan | None
    options: tuple[Option, ...] = ()
    """All that were looked at: the chosen first, then those that fit, then the nearest ones that do not."""
    rejections: tuple[Rejection | None, ...] = ()
    """Parallel to `options`; None for the chosen one."""
    errors: tuple[FieldError, ...] = ()

    @property
    def rejected(self) -> tuple[tuple[Option, Rejection], ...]:
        """Options not taken with the reason, nearest first."""
        return tuple(
            (option, why) for option, why in zip(self.options, self.rejections, strict=True) if why is not None
        )

    def to_json(self) -> dict[str, Any]:
        """The object of `trimtab plan -o json`."""
        return {
            "chosen": self.plan.option.to_json() if self.plan else None,
            "options": [option.to_json() for option in self.options],
            "errors": [error.to_json() for error in self.errors],
        }
