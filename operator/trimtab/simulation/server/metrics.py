"""TGI's metrics under TGI's names: no `_total`, no units, and no series before its first event.

Names, labels and buckets: router/src/server.rs of TGI 3.3.7; rendering as metrics-exporter-prometheus 0.15 does it.
`tgi_batch_max_total_tokens` and `tgi_batch_total_tokens` are named in the sources but never exported.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

_COUNTERS = {
    "tgi_request_count": "Requests that reached a handler",
    "tgi_request_success": "Generations that finished",
    "tgi_request_failure": "Requests that failed, by cause",
    "tgi_batch_concat": "Merges of waiting requests into the running batch",
    "tgi_batch_inference_count": "Calls of the shards",
    "tgi_batch_inference_success": "Calls of the shards that succeeded",
    "tgi_batch_inference_failure": "Calls of the shards that failed",
}
_GAUGES = {
    "tgi_queue_size": "Requests that wait for a batch",
    "tgi_batch_current_size": "Requests in the running batch",
    "tgi_batch_current_max_tokens": "KV tokens reserved by the running batch",
}
_SECONDS = {
    "tgi_request_duration": "End-to-end time of successful requests",
    "tgi_request_validation_duration": "Arrival to queue",
    "tgi_request_queue_duration": "Queue to batch",
    "tgi_request_inference_duration": "Batch to last token",
    "tgi_request_mean_time_per_token_duration": "Inference time over generated tokens",
    "tgi_batch_inference_duration": "Time of a call of the shards",
    "tgi_batch_forward_duration": "Forward pass of the slowest shard",
    "tgi_batch_decode_duration": "Token to text",
    "tgi_batch_filter_duration": "Sending tokens and filtering finished requests",
    "tgi_batch_concat_duration": "Merging batches on the shard",
}
SKIPPED = "tgi_request_skipped_tokens"
_QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")


def duration_buckets() -> tuple[float, ...]:
    """0.0001 x 1.5^k seconds, k = 1..35."""
    bounds, bound = [], 0.0001
    for _ in range(35):
        bound *= 1.5
        bounds.append(bound)
    return tuple(bounds)


def linear_buckets(most: int) -> tuple[float, ...]:
    """A hundred equal steps up to `most`."""
    return tuple(most / 100 * step for step in range(1, 101))


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, not cumulated."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """One value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """All series of one process."""

    def __init__(self, max_input_tokens: int, max_total_tokens: int) -> None:
        seconds, inputs, totals = duration_buckets(), linear_buckets(max_input_tokens), linear_buckets(max_total_tokens)
        self._bounds: dict[str, Sequence[float]] = dict.fromkeys(_SECONDS, seconds)
        self._bounds["tgi_request_input_length"] = inputs
        self._bounds["tgi_request_generated_tokens"] = totals
        self._bounds["tgi_request_max_new_tokens"] = totals
        self._bounds["tgi_batch_next_size"] = tuple(float(size) for size in range(1, 1025))
        self._labels = {name: tuple(_number(bound) for bound in bounds) for name, bounds in self._bounds.items()}
        self._values: dict[tuple[str, str], float] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self._skipped = 0

    def add(self, name: str, labels: str = "", by: float = 1.0) -> None:
        """Count; `labels` as they are written, for instance `method="decode"`."""
        key = (name, labels)
        self._values[key] = self._values.get(key, 0.0) + by

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._values[(name, "")] = value

    def observe(self, name: str, value: float, labels: str = "") -> None:
        """One value of a histogram."""
        key = (name, labels)
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = Histogram(self._bounds[name])
        histogram.observe(value)

    def tokens_without_speculation(self, count: int) -> None:
        """Tokens each of which a pass gave one by one: the summary of skipped tokens sees that many zeros."""
        self._skipped += count

    def render(self) -> str:
        """The text format of Prometheus."""
        lines: list[str] = []
        for table, kind in ((_COUNTERS, "counter"), (_GAUGES, "gauge")):
            for name, text in table.items():
                series = sorted((labels, value) for (known, labels), value in self._values.items() if known == name)
                if series:
                    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                    lines += [f"{name}{_braces(labels)} {_number(value)}" for labels, value in series]
                    lines.append("")
        for name in self._bounds:
            self._render_histogram(name, lines)
        if self._skipped:
            lines += [f"# TYPE {SKIPPED} summary"]
            lines += [f'{SKIPPED}{{quantile="{quantile}"}} 0' for quantile in _QUANTILES]
            lines += [f"{SKIPPED}_sum 0", f"{SKIPPED}_count {self._skipped}", ""]
        return "\n".join(lines) + "\n"

    def _render_histogram(self, name: str, lines: list[str]) -> None:
        series = sorted((labels, found) for (known, labels), found in self._histograms.items() if known == name)
        if not series:
            return
        text = _SECONDS.get(name)
        if text is not None:
            lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} histogram")
        for labels, histogram in series:
            prefix = f'{name}_bucket{{{labels}{"," if labels else ""}le="'
            cumulated = 0
            for bound, count in zip(self._labels[name], histogram.counts, strict=False):
                cumulated += count
                lines.append(f'{prefix}{bound}"}} {cumulated}')
            cumulated += histogram.counts[-1]
            lines.append(f'{prefix}+Inf"}} {cumulated}')
            lines.append(f"{name}_sum{_braces(labels)} {_number(histogram.total)}")
            lines.append(f"{name}_count{_braces(labels)} {cumulated}")
        lines.append("")


def _braces(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
