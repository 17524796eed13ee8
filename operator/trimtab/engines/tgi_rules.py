"""Which combinations Text Generation Inference 3.3.7 rejects, crashes on, or silently ignores.

Each rule is a small function over a `Case` that yields findings; `RULES` runs them in order. What the launcher checks
is in launcher/src/main.rs, the router in backends/v3/src and router/src, the shards in server/text_generation_server.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.engines.base import EngineSettings, Finding
from trimtab.engines.resolve import ENV, EXTRA_ARGS, Setting, error, warning
from trimtab.engines.tgi_facts import MARLIN, QUANTIZATIONS

BLOCK_TOKENS = {"flashinfer": 1, "flashdecoding": 256, "paged": 16, "flashdecoding-ipex": 64}
"""Tokens of a KV block by attention backend (models/globals.py)."""

_FLASHINFER_HEAD_DIMS = frozenset({64, 128, 256})
_NO_FLASHINFER = frozenset({"falcon", "deepseek_v2"})
_NO_CHUNKING = frozenset({"gemma3", "qwen2_vl", "qwen2_5_vl", "mllama"})
_TAKEN_PORTS = {8000: "the engine", 8080: "the sidecar", 9100: "the sidecar's metrics"}
_ALL_ADDRESSES = ("0.0.0.0", "::")  # noqa: S104 - these are compared, nothing is bound


@dataclass(frozen=True, slots=True)
class Attention:
    """What the launcher and the shards make of the model, the GPU and the variables."""

    backend: str
    """`flashinfer`, `flashdecoding`, `paged`, `flashdecoding-ipex`."""
    prefix_caching: bool
    chunking: bool
    """Prompts are cut to the prefill budget and mixed with decode steps."""
    flash: bool
    """KV cache in blocks; otherwise batches are padded."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that a rule may look at."""

    settings: EngineSettings
    model: ModelFacts
    gpu: GpuFacts
    values: Mapping[str, Setting]
    """By flag, for variables without a flag by name."""
    attention: Attention

    def number(self, name: str) -> float | None:
        """Value of a numeric flag; None when it is not set."""
        setting = self.values.get(name)
        return None if setting is None else setting.number


def resolve_attention(settings: EngineSettings, model: ModelFacts, gpu: GpuFacts, lora: bool = False) -> Attention:
    """What `resolve_attention` of launcher/src/main.rs and models/globals.py come to.

    Images for other vendors preset the backend. Chunking is silently switched off by the shard where the backend, the
    model or speculation does not allow it (models/model.py).
    """
    flash = model.tgi_native and settings.env.get("USE_FLASH_ATTENTION") != "false"
    usual_dims = model.head_dim in _FLASHINFER_HEAD_DIMS
    backend = settings.env.get("ATTENTION") or _default_backend(model, gpu, usual_dims)
    prefix = usual_dims and backend != "paged" and not lora and model.vision_parameters == 0
    if settings.prefix_caching is not None:
        prefix = settings.prefix_caching
    # The images for ROCm and Gaudi preset PREFILL_CHUNKING=0.
    preset = backend != "paged" or gpu.vendor == "nvidia"
    wanted = preset if settings.batching.prefill_chunking is None else settings.batching.prefill_chunking
    chunking = wanted and flash and not settings.speculate and backend != "paged" and model.family not in _NO_CHUNKING
    return Attention(backend, prefix and flash, chunking, flash)


def _default_backend(model: ModelFacts, gpu: GpuFacts, usual_dims: bool) -> str:
    if gpu.vendor == "amd" or "gaudi" in gpu.resource:
        return "paged"
    if gpu.vendor == "intel":
        return "flashdecoding-ipex"
    if usual_dims and model.family not in _NO_FLASHINFER:
        return "flashinfer"
    return "flashdecoding" if (gpu.compute_capability or 0) >= MARLIN else "paged"


Rule = Callable[[Case], Iterable[Finding]]


def _token_order(case: Case) -> Iterator[Finding]:
    low, high = case.values.get("--max-input-tokens"), case.values.get("--max-total-tokens")
    if low is not None and high is not None and low.number >= high.number:
        message = f"must be less than maxTotalTokens {high.value}, which counts the answer too"
        yield error(low.field, int(low.number), message, f"at most {int(high.number) - 1}")
    budget = case.values.get("--max-batch-total-tokens")
    if budget is not None and high is not None and high.number > budget.number:
        message = f"must not exceed maxBatchTotalTokens {budget.value}: one request must fit in a batch"
        yield error(high.field, int(high.number), message, f"at most {budget.value}")


def _warmup_wrap(case: Case) -> Iterator[Finding]:
    high, prefill = case.values.get("--max-total-tokens"), case.values.get("--max-batch-prefill-tokens")
    if "--max-input-tokens" in case.values or high is None or prefill is None:
        return
    if prefill.number > high.number:
        message = (
            f"exceeds maxTotalTokens {high.value} while maxInputTokens is not set: the warm-up request would ask for a"
            " negative number of tokens. Set context.maxInputTokens too"
        )
        yield error(prefill.field, int(prefill.number), message, f"at most {high.value}, or maxInputTokens set")


def _prefill_budget(case: Case) -> Iterator[Finding]:
    longest, prefill = case.values.get("--max-input-tokens"), case.values.get("--max-batch-prefill-tokens")
    if case.attention.chunking or longest is None or prefill is None or prefill.number >= longest.number:
        return
    message = (
        f"must be at least maxInputTokens {longest.value}, because prompts are not cut into chunks here"
        f" ({_why_no_chunking(case)})"
    )
    yield error(prefill.field, int(prefill.number), message, f"at least {longest.value}")


def _why_no_chunking(case: Case) -> str:
    if case.settings.speculate:
        return "speculation switches chunking off"
    if not case.attention.flash:
        return "the model has no flash implementation"
    if case.model.family in _NO_CHUNKING:
        return f"{case.model.family} does not support it"
    if case.attention.backend == "paged":
        return "paged attention does not support it"
    return "PREFILL_CHUNKING is off"


def _ignored_batching(case: Case) -> Iterator[Finding]:
    total = case.values.get("--max-batch-total-tokens")
    if total is not None and case.attention.flash:
        message = (
            "is ignored: models with a flash implementation measure it at warm-up. Limit memory with"
            " --cuda-memory-fraction in engine.extraArgs instead"
        )
        yield warning(total.field, int(total.number), message, "leave it out")
    if not case.attention.chunking:
        return
    for flag in ("--waiting-served-ratio", "--max-waiting-tokens"):
        setting = case.values.get(flag)
        if setting is not None:
            message = (
                "is ignored while prompts are cut into chunks, because waiting requests then join at every step."
                " Set PREFILL_CHUNKING=0 in engine.env if you want it"
            )
            yield warning(setting.field, setting.number, message, "leave it out")
    size = case.values.get("--max-batch-size")
    if size is not None:
        message = (
            "holds only for the first batch after idle: with chunked prompts requests join beyond it. The sidecar keeps"
            " the requests in flight within it instead; PREFILL_CHUNKING=0 in engine.env makes the engine hold it"
        )
        yield warning(size.field, int(size.number), message, "tuning.limits.maxInFlight for a limit that may move")


def _concurrency(case: Case) -> Iterator[Finding]:
    size, accepted = case.values.get("--max-batch-size"), case.values.get("--max-concurrent-requests")
    if size is not None and accepted is not None and accepted.number < size.number:
        message = f"is below maxBatchSize {size.value}: the batch can never fill"
        yield warning(accepted.field, int(accepted.number), message, f"at least {size.value}")


def _dtype(case: Case) -> Iterator[Finding]:
    dtype = case.values.get("--dtype")
    if dtype is None:
        return
    rule = QUANTIZATIONS.get(case.settings.quantization)
    if rule is not None and not rule.dtype_allowed:
        message = f"cannot be combined with quantization {rule.name}: the shard refuses to start. Leave one of them out"
        yield error(dtype.field, f"--dtype {dtype.value}", message, "only with none or bitsandbytes")
    if dtype.value == "bfloat16" and case.gpu.vendor == "nvidia" and (case.gpu.compute_capability or 0) < MARLIN:
        message = f"bfloat16 needs compute capability 8.0, {case.gpu.id} has {case.gpu.compute_capability}"
        yield error(dtype.field, f"--dtype {dtype.value}", message, "float16")


def _quantization(case: Case) -> Iterator[Finding]:
    rule = QUANTIZATIONS.get(case.settings.quantization)
    if rule is None:
        return
    if rule.deprecated:
        message = f"is deprecated by the engine and slower than 16 bits: use {rule.deprecated}"
        yield warning("spec.quantization", rule.name, message, rule.deprecated)
    old = case.gpu.vendor == "nvidia" and (case.gpu.compute_capability or 0) < MARLIN
    if rule.name == "gptq" and old:
        message = f"runs on slow Triton kernels on {case.gpu.id}: Marlin needs compute capability 8.0"
        yield warning("spec.quantization", rule.name, message, "a GPU of compute capability 8.0")


def _speculation(case: Case) -> Iterator[Finding]:
    setting = case.values.get("--speculate")
    if setting is not None and setting.number > 0:
        message = (
            "switches chunked prompts off: running requests stall during each prefill, and maxBatchPrefillTokens must"
            " hold the longest prompt"
        )
        yield warning(setting.field, f"--speculate {setting.value}", message, "0")


def _attention(case: Case) -> Iterator[Finding]:
    backend, vendor = case.attention.backend, case.gpu.vendor
    fits = {
        "nvidia": ("flashinfer", "flashdecoding", "paged"),
        "amd": ("paged",),
        "intel": ("flashdecoding-ipex", "paged"),
    }[vendor]
    if backend not in fits:
        message = f"the image for {vendor} GPUs has no {backend} attention"
        yield error(ENV, f"ATTENTION={backend}", message, ", ".join(fits))
    elif case.attention.prefix_caching and backend == "paged":
        message = "prefix caching needs flashinfer or flashdecoding, the shard refuses to start with paged attention"
        yield error(ENV, "PREFIX_CACHING=1", message, "PREFIX_CACHING=0")
    if case.settings.batching.prefill_chunking and not case.attention.chunking:
        message = f"has no effect: {_why_no_chunking(case)}"
        yield warning(ENV, "PREFILL_CHUNKING=1", message, "leave it out")
    if case.model.tgi_native and not case.attention.flash:
        message = (
            "gives up the flash implementation: batches are padded, memory is not measured, and the plan does not hold"
        )
        yield error(ENV, "USE_FLASH_ATTENTION=false", message, "leave it out")


def _sliding_window(case: Case) -> Iterator[Finding]:
    window = case.model.sliding_window
    longest = case.values.get("--max-input-tokens")
    if window is None or case.attention.backend != "paged":
        return
    if longest is None or longest.number > window.window:
        message = f"paged attention cannot window: prompts must not exceed the window of {case.model.id}"
        value = None if longest is None else int(longest.number)
        yield error("spec.context.maxInputTokens", value, message, f"at most {window.window}")


def _lora(case: Case) -> Iterator[Finding]:
    adapters = case.values.get("--lora-adapters")
    if adapters is None:
        return
    for item in adapters.value.split(","):
        if item.count("@") > 1 or item.count("=") > 1 or not item:
            yield error(adapters.field, item, "is no adapter", "id, id@revision, name=/path or name=/path@revision")
    if case.settings.prefix_caching is None:
        yield warning(adapters.field, "--lora-adapters", "switches prefix caching off", "")


def _network(case: Case) -> Iterator[Finding]:
    host = case.values.get("--hostname")
    if host is not None and host.value not in _ALL_ADDRESSES:
        message = "probes and the sidecar must both reach the engine: it has to listen on all addresses"
        yield error(host.field, f"--hostname {host.value}", message, " or ".join(_ALL_ADDRESSES))
    for flag, default in (("--prometheus-port", 9000), ("--master-port", 29500)):
        setting = case.values.get(flag)
        port = default if setting is None else int(setting.number)
        if setting is not None and port in _TAKEN_PORTS:
            message = f"port {port} belongs to {_TAKEN_PORTS[port]} in the same pod"
            yield error(setting.field, f"{flag} {port}", message, "a free port")


def _hub(case: Case) -> Iterator[Finding]:
    if case.settings.model_id.startswith("/") and case.settings.revision is not None:
        message = "a revision makes the engine ask the Hub even for a local folder: leave it out"
        yield error("spec.model.revision", case.settings.revision, message, "no revision with pvc://")
    cache = case.values.get("--huggingface-hub-cache")
    if cache is not None:
        message = "the launcher looks for config.json below HF_HOME only, so that quantization is not detected"
        yield warning(cache.field, f"--huggingface-hub-cache {cache.value}", message, "model.cache")
    code = case.values.get("--trust-remote-code")
    if code is not None and code.value == "true":
        message = "runs code from the model repository with the rights of the engine: pin model.revision to a commit"
        yield warning(code.field, "--trust-remote-code", message, "a reviewed commit")


def _costly(case: Case) -> Iterator[Finding]:
    if case.values.get("--enable-prefill-logprobs") is not None:
        message = "needs memory that the plan does not count: lower maxBatchPrefillTokens"
        yield warning(EXTRA_ARGS, "--enable-prefill-logprobs", message)
    if case.values.get("--env") is not None:
        yield warning(EXTRA_ARGS, "--env", "only prints the build and the driver's report to the log at each start")
    scaling, factor = case.values.get("--rope-scaling"), case.values.get("--rope-factor")
    if scaling is not None and factor is None:
        yield warning(
            scaling.field, f"--rope-scaling {scaling.value}", "has factor 1.0 and no effect: add --rope-factor"
        )
    if factor is not None and scaling is None:
        yield warning(factor.field, f"--rope-factor {factor.value}", "implies --rope-scaling linear")


def _secrets(case: Case) -> Iterator[Finding]:
    if "API_KEY" in case.settings.secret_env:
        message = (
            "is written to the engine's log in clear text at start, compared without case, and does not guard /info,"
            " /metrics, /v1/models and /chat_tokenize: rather check keys in a gateway"
        )
        yield warning(ENV, "API_KEY", message, "a gateway")


RULES: tuple[Rule, ...] = (
    _token_order,
    _warmup_wrap,
    _prefill_budget,
    _ignored_batching,
    _concurrency,
    _dtype,
    _quantization,
    _speculation,
    _attention,
    _sliding_window,
    _lora,
    _network,
    _hub,
    _costly,
    _secrets,
)


def check(case: Case) -> tuple[Finding, ...]:
    """All findings, in the order of RULES."""
    return tuple(finding for rule in RULES for finding in rule(case))
