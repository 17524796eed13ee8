"""What every serving engine must say about itself, in words that belong to none of them.

An engine turns `EngineSettings` into a `Launch`: a command line, an environment, and findings about what it would
reject, crash on or silently ignore. Everything here is plain data and pure functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from trimtab.api.errors import FieldError
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts

MODEL_KV_DTYPE = "model"
"""Keep keys and values in the model's own number format."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests share forward passes; None: the engine's own default."""

    max_batch_size: int | None = None
    """Most requests in a batch."""
    max_batch_prefill_tokens: int | None = None
    """Token budget of one prefill pass."""
    max_batch_total_tokens: int | None = None
    """Token budget of a batch, prompts and answers."""
    waiting_served_ratio: float | None = None
    """Waiting over running requests from which the running batch pauses for a prefill."""
    max_waiting_tokens: int | None = None
    """Decode steps after which waiting requests are forced in."""
    max_concurrent_requests: int | None = None
    """Requests that the engine accepts, queued or running."""
    prefill_chunking: bool | None = None
    """Prompts are cut to fit the prefill budget and mixed with decode steps."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine shall run, without any engine's flag names."""

    model_id: str
    """Hub id, or absolute folder inside the container."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository."""
    quantization: str = "none"
    """A key of `Engine.quantizations`."""
    dtype: str | None = None
    """`float16` or `bfloat16`; None: the checkpoint's own."""
    kv_cache_dtype: str = MODEL_KV_DTYPE
    """`model`, `fp8_e4m3fn` or `fp8_e5m2`."""
    gpus_per_replica: int = 1
    """Tensor-parallel shards."""
    max_input_tokens: int | None = None
    """Longest prompt."""
    max_total_tokens: int | None = None
    """Longest prompt and answer together."""
    batching: BatchSettings = BatchSettings()
    memory_fraction: float | None = None
    """Part of the GPU's memory that the engine may take, in (0, 1]; None: the engine's default."""
    prefix_caching: bool | None = None
    """Reuse the keys and values of equal prompt beginnings; None: the engine's default."""
    speculate: int | None = None
    """Tokens guessed ahead in each step; None: the engine's default, that is none."""
    trust_remote_code: bool = False
    """Run code from the model repository."""
    extra_args: tuple[str, ...] = ()
    """Flags without a setting of their own, checked against the engine's flag list."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Plain variables from the user."""
    secret_env: frozenset[str] = frozenset()
    """Names of variables whose value comes from a Secret: checked by name only."""
    port: int = 8000
    """Where the engine listens."""


class Severity(StrEnum):
    """What a finding means for the launch."""

    ERROR = "error"
    """The engine would refuse, crash, or do something else than asked: no pod may be created."""
    WARNING = "warning"
    """It works, but not in the way that the setting suggests."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a combination of settings before any pod exists."""

    severity: Severity
    field: str
    """JSON path below the resource, for instance `spec.batching.maxBatchSize`."""
    value: Any
    message: str
    """What would happen, and what to do instead."""
    allowed: str = ""
    """What may stand there."""

    def to_field_error(self) -> FieldError:
        """The same in the form in which invalid specs are reported."""
        return FieldError(self.field, self.value, self.message, self.allowed)

    def sentence(self) -> str:
        """One line for conditions, events and terminals."""
        return self.to_field_error().sentence()


@dataclass(frozen=True, slots=True)
class Launch:
    """The engine's command line (without the program), its environment, and what was found while making them."""

    args: tuple[str, ...]
    env: Mapping[str, str]
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that forbid the launch."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that should be known."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)


@dataclass(frozen=True, slots=True)
class QuantizationRule:
    """When an engine can run one number format of weights."""

    name: str
    bits: float
    """Nominal bits of a linear weight; the checkpoint's own figure wins for ready-made formats."""
    checkpoint_methods: frozenset[str] = frozenset()
    """Values of `CheckpointQuantization.method` that it loads."""
    on_the_fly: bool = False
    """Loads 16-bit checkpoints, quantizing them if need be."""
    vendors: frozenset[str] = frozenset({"nvidia"})
    """GPU vendors for which the engine has kernels."""
    min_compute_capability: float | None = None
    """CUDA compute capability of the kernels; None: no floor is documented."""
    checkpoint_bits: frozenset[float] = frozenset()
    """Bit widths of checkpoints that the kernels handle; empty: any."""
    shardable: bool = True
    """May be spread over several GPUs."""
    native_models_only: bool = True
    """Refused for models that the engine runs through transformers."""
    dtype_allowed: bool = False
    """May be combined with an explicit dtype."""
    forced_dtype: str | None = None
    """Activations are computed in this dtype whatever the checkpoint says."""
    load_in_host_memory: bool = False
    """Weights are quantized on the CPU while loading: slow start, host memory of the 16-bit size."""
    auto_detected: bool = False
    """Known from the checkpoint: no flag is needed."""
    deprecated: str = ""
    """What the engine recommends instead; empty: not deprecated."""
    notes: str = ""
    """What to know beyond the rules."""
    source: str = ""
    """Where the rules come from."""

    def problem(self, model: ModelFacts, gpu: GpuFacts, shards: int) -> str | None:
        """Why this model cannot run so on this GPU, with what would change that; None: it can."""
        return (
            self._checkpoint_problem(model)
            or self._gpu_problem(gpu)
            or self._sharding_problem(shards)
            or self._implementation_problem(model)
        )

    def _checkpoint_problem(self, model: ModelFacts) -> str | None:
        checkpoint = model.checkpoint
        if checkpoint is None:
            if self.on_the_fly:
                return None
            return f"needs a {self.name} checkpoint, {model.id} has 16-bit weights: name a {self.name} repository"
        if checkpoint.method not in self.checkpoint_methods:
            return (
                f"{model.id} is stored as {checkpoint.method}, which {self.name} cannot load: name another repository"
            )
        if self.checkpoint_bits and checkpoint.bits not in self.checkpoint_bits:
            allowed = ", ".join(f"{bits:g}" for bits in sorted(self.checkpoint_bits))
            return f"kernels handle {allowed} bits, {model.id} has {checkpoint.bits:g}: name another repository"
        return None

    def _gpu_problem(self, gpu: GpuFacts) -> str | None:
        if gpu.vendor not in self.vendors:
            return f"has no kernels for {gpu.id} ({gpu.vendor}): use a GPU of {' or '.join(sorted(self.vendors))}"
        floor, has = self.min_compute_capability, gpu.compute_capability
        if floor is not None and has is not None and has < floor:
            return f"needs compute capability {floor:.1f}, {gpu.id} has {has:.1f}: use a newer GPU"
        return None

    def _sharding_problem(self, shards: int) -> str | None:
        if shards > 1 and not self.shardable:
            return f"cannot be spread over {shards} GPUs: use one GPU or another quantization"
        return None

    def _implementation_problem(self, model: ModelFacts) -> str | None:
        if self.native_models_only and not model.tgi_native:
            return f"{model.family} runs through transformers, which does not take {self.name}: use none"
        return None


class Signal(StrEnum):
    """What the tuner wants to know from an engine, whatever the engine calls it."""

    QUEUE_SIZE = "queue_size"
    """Requests waiting inside the engine (gauge)."""
    RUNNING = "running"
    """Requests in the running batch (gauge)."""
    KV_USED_TOKENS = "kv_used_tokens"
    """KV tokens reserved by the running batch (gauge)."""
    KV_USED_RATIO = "kv_used_ratio"
    """The same as a part of the capacity, 0..1 (gauge)."""
    REQUESTS_SUCCEEDED = "requests_succeeded"
    """Finished requests (counter)."""
    REQUESTS_FAILED = "requests_failed"
    """Failed requests (counter)."""
    REQUEST_SECONDS = "request_seconds"
    """Arrival to end (histogram)."""
    QUEUE_SECONDS = "queue_seconds"
    """Arrival in the queue to first batch (histogram)."""
    TTFT_SECONDS = "ttft_seconds"
    """Arrival to first token (histogram)."""
    TPOT_SECONDS = "tpot_seconds"
    """Time per output token after the first (histogram)."""
    DECODE_STEP_SECONDS = "decode_step_seconds"
    """One decode step of the whole batch (histogram)."""
    PREFILL_SECONDS = "prefill_seconds"
    """One prefill (histogram)."""
    INPUT_TOKENS = "input_tokens"
    """Prompt tokens; use its sum (histogram or counter)."""
    GENERATED_TOKENS = "generated_tokens"
    """Generated tokens; use its sum (histogram or counter)."""
    PREEMPTIONS = "preemptions"
    """Running requests thrown back into the queue (counter)."""


class MetricKind(StrEnum):
    """Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """An engine's metric for a signal."""

    name: str
    """As exported; histograms without `_bucket`, `_sum`, `_count`."""
    kind: MetricKind
    selector: str = ""
    """Label matchers that narrow it to the signal, for instance `method="decode"`."""
    notes: str = ""
    """Where it differs from the signal's definition."""


@dataclass(frozen=True, slots=True)
class ProbeAdvice:
    """A probe of the engine's health path, in seconds and counts."""

    period: int
    timeout: int
    failure_threshold: int


@dataclass(frozen=True, slots=True)
class Drain:
    """How the engine ends."""

    graceful_seconds: int
    """How long open requests may take: first while the sidecar waits for them, then, where the engine drains by
    itself, after SIGTERM."""
    stop_seconds: int
    """On top: what the engine needs to stop once drained."""
    pre_stop_seconds: int
    """Before: until no more requests are sent to the pod."""

    @property
    def termination_grace_seconds(self) -> int:
        """`terminationGracePeriodSeconds` that covers all three."""
        return self.pre_stop_seconds + self.graceful_seconds + self.stop_seconds


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    """What the engine's image needs from a pod."""

    health_path: str
    metrics_path: str
    startup: ProbeAdvice
    """`failure_threshold` x `period` is the time for everything but the download of the weights."""
    readiness: ProbeAdvice
    liveness: ProbeAdvice
    runs_as_root: bool
    """The public image cannot run as another user."""
    root_reason: str
    """Why; shown to those who ask for a restricted pod."""
    read_only_root: bool
    """Works with a read-only root file system once `writable` is mounted."""
    writable: Mapping[str, str]
    """Volume name → mount path of scratch folders that must be writable."""
    cache_dir: str
    """Where weights are downloaded to."""
    token_env: str
    """Variable that carries the Hub token."""
    command: tuple[str, ...] = ()
    """Replaces the image's entrypoint; empty: the image's own."""


@dataclass(frozen=True, slots=True)
class FailurePattern:
    """A line in the engine's log that explains why it ended."""

    pattern: str
    """Regular expression, searched in the last lines."""
    reason: str
    """CamelCase reason for conditions and events."""
    advice: str
    """What to change."""


class Engine(Protocol):
    """One serving engine at one version."""

    @property
    def name(self) -> str:
        """Name in specs, for instance `tgi`."""
        ...

    @property
    def version(self) -> str:
        """The release that the rules below describe."""
        ...

    def image(self, gpu: GpuFacts) -> str:
        """Public image of that release for this kind of GPU."""
        ...

    @property
    def quantizations(self) -> Mapping[str, QuantizationRule]:
        """Number formats of weights by name; `none` is always among them."""
        ...

    @property
    def container(self) -> ContainerFacts:
        """What the container needs."""
        ...

    @property
    def metrics(self) -> Mapping[Signal, Metric]:
        """The signals that it exports; the others it does not."""
        ...

    @property
    def failures(self) -> tuple[FailurePattern, ...]:
        """Known ends, most specific first."""
        ...

    def option_problem(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str | None:
        """Why quantization, KV dtype and sharding cannot work for this model on this GPU; None: they can.

        Cheap: the planner asks for every option.
        """
        ...

    def kv_cache_dtype(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> str:
        """Number format in which keys and values are really kept: `float16`, `bfloat16`, `fp8_e4m3fn` or `fp8_e5m2`."""
        ...

    def chunks_prompts(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> bool:
        """Whether a prompt may be longer than the prefill budget, being cut to fit it."""
        ...

    def kv_block_tokens(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> int:
        """KV tokens are handed out in blocks of this size."""
        ...

    def understand(self, settings: EngineSettings) -> EngineSettings:
        """The settings with what `extra_args` and `env` say about them lifted into their own fields.

        For the planner, whose arithmetic must see a memory fraction or a dtype wherever it was written; `launch` takes
        the settings as they were.
        """
        ...

    def drain(self, settings: EngineSettings) -> Drain:
        """How long ending may take with these settings."""
        ...

    def launch(self, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts) -> Launch:
        """Command line and environment, with everything that is wrong or surprising about them."""
        ...
