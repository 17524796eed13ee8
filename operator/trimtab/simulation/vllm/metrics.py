"""vLLM's metrics under vLLM's names (vllm/v1/metrics/loggers.py of tag v0.11.0), labels model_name and engine."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trimtab.simulation.vllm.scheduler import Iteration, Scheduler
from trimtab.simulation.vllm.scheduler import Sequence as Request

_LABELS = ("model_name", "engine")
_GAUGES = MappingProxyType(
    {
        "num_requests_running": "Number of requests in model execution batches.",
        "num_requests_waiting": "Number of requests waiting to be processed.",
        "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
    }
)
_COUNTERS = MappingProxyType(
    {
        "num_preemptions": "Preemptions so far.",
        "prompt_tokens": "Prefill tokens processed.",
        "generation_tokens": "Generation tokens processed.",
    }
)
_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_TOKEN = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_SECONDS: Mapping[str, Sequence[float]] = MappingProxyType(
    {
        "time_to_first_token_seconds": _TTFT,
        "inter_token_latency_seconds": _TOKEN,
        "time_per_output_token_seconds": _TOKEN,
        "request_time_per_output_token_seconds": _TOKEN,
        "e2e_request_latency_seconds": _REQUEST,
        "request_queue_time_seconds": _REQUEST,
        "request_inference_time_seconds": _REQUEST,
        "request_prefill_time_seconds": _REQUEST,
        "request_decode_time_seconds": _REQUEST,
    }
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_REASONS = ("stop", "length", "abort")


def token_buckets(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, … up to `most`."""
    found, power = list[float](), 1
    while power <= most:
        found += [float(factor * power) for factor in (1, 2, 5) if factor * power <= most]
        power *= 10
    return tuple(found)


class Metrics:
    """All series of one process; every one is there from the start."""

    def __init__(self, model_name: str, max_model_len: int) -> None:
        self._registry = registry = CollectorRegistry()
        values = (model_name, "0")
        self._gauges = {
            name: Gauge(f"vllm:{name}", text, _LABELS, registry=registry).labels(*values)
            for name, text in _GAUGES.items()
        }
        self._counters = {
            name: Counter(f"vllm:{name}", text, _LABELS, registry=registry).labels(*values)
            for name, text in _COUNTERS.items()
        }
        tokens = token_buckets(max_model_len)
        bounds: dict[str, Sequence[float]] = {
            **_SECONDS,
            "request_prompt_tokens": tokens,
            "request_generation_tokens": tokens,
            "request_params_max_tokens": tokens,
            "iteration_tokens_total": _STEP_TOKENS,
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", name, _LABELS, registry=registry, buckets=buckets).labels(*values)
            for name, buckets in bounds.items()
        }
        success = Counter(
            "vllm:request_success", "Processed requests.", (*_LABELS, "finished_reason"), registry=registry
        )
        self._success = {reason: success.labels(*values, reason) for reason in _REASONS}

    def state(self, scheduler: Scheduler) -> None:
        """Set the gauges."""
        self._gauges["num_requests_running"].set(len(scheduler.running))
        self._gauges["num_requests_waiting"].set(len(scheduler.waiting))
        self._gauges["kv_cache_usage_perc"].set(scheduler.kv_usage)

    def iteration(self, iteration: Iteration) -> None:
        """Count a step that is over."""
        self._counters["num_preemptions"].inc(iteration.preempted)
        self._counters["generation_tokens"].inc(len(iteration.emitted))
        self._histograms["iteration_tokens_total"].observe(iteration.tokens)

    def first_token(self, request: Request, seconds: float) -> None:
        """A prompt is through; `seconds` after its arrival."""
        self._counters["prompt_tokens"].inc(request.prompt_tokens)
        self._histograms["time_to_first_token_seconds"].observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A further token, `seconds` after the one before; an older name counts the same."""
        self._histograms["inter_token_latency_seconds"].observe(seconds)
        self._histograms["time_per_output_token_seconds"].observe(seconds)

    def end(self, request: Request, now: float) -> None:
        """A request has ended or was aborted."""
        self._success[request.finish_reason or "abort"].inc()
        observed = self._histograms
        observed["e2e_request_latency_seconds"].observe(now - request.arrived)
        observed["request_prompt_tokens"].observe(request.prompt_tokens)
        observed["request_generation_tokens"].observe(request.generated)
        observed["request_params_max_tokens"].observe(request.max_tokens)
        if request.scheduled_at is None or request.first_token_at is None or request.last_token_at is None:
            return
        decoding = request.last_token_at - request.first_token_at
        observed["request_queue_time_seconds"].observe(request.scheduled_at - request.arrived)
        observed["request_prefill_time_seconds"].observe(request.first_token_at - request.scheduled_at)
        observed["request_inference_time_seconds"].observe(request.last_token_at - request.scheduled_at)
        observed["request_decode_time_seconds"].observe(decoding)
        mean = decoding / (request.generated - 1) if request.generated > 1 else 0.0
        observed["request_time_per_output_token_seconds"].observe(mean)

    def render(self) -> str:
        """The text format of Prometheus."""
        text: str = generate_latest(self._registry).decode()
        return text
