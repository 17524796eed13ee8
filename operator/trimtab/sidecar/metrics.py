"""Metrics in Prometheus' text format, kept as plain numbers: one addition in the hot path, text only at scrape time."""

from bisect import bisect_left
from collections.abc import Callable, Mapping

from trimtab.sidecar.interfaces import Route

LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0),
    *(1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0),
)
"""Upper bounds in seconds for TTFT, duration and queue wait: close together where objectives lie."""
TPOT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.02, 0.0225, 0.025, 0.0275, 0.03, 0.035, 0.04),
    *(0.045, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
"""Upper bounds in seconds for the time per output token."""


class Cell:
    """One series of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Add to the value."""
        self.value += amount


class Buckets:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation (seconds)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = []
    for name, value in zip(names, values, strict=True):
        escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        pairs.append(f'{name}="{escaped}"')
    return ",".join(pairs)


class Counter:
    """A family of counters, one cell a combination of label values."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name, self.help, self.labels = name, help_text, labels
        self.cells: dict[tuple[str, ...], Cell] = {}

    def cell(self, *values: str) -> Cell:
        """The series with these label values; made at first use."""
        found = self.cells.get(values)
        if found is None:
            found = self.cells[values] = Cell()
        return found

    def add(self, *values: str, amount: float = 1) -> None:
        """Add to the series with these label values."""
        self.cell(*values).value += amount

    def lines(self) -> list[str]:
        """Samples in text format."""
        return [
            f"{self.name}{{{_labels(self.labels, values)}}} {cell.value:.17g}"
            if values
            else f"{self.name} {cell.value:.17g}"
            for values, cell in self.cells.items()
        ]


class Gauge:
    """A value read at scrape time."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        self.name, self.help, self._read = name, help_text, read

    def lines(self) -> list[str]:
        """Samples in text format."""
        return [f"{self.name} {self._read():.17g}"]


class Histogram:
    """A family of histograms."""

    kind = "histogram"

    def __init__(self, name: str, help_text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self.name, self.help, self.labels, self._bounds = name, help_text, labels, bounds
        self.cells: dict[tuple[str, ...], Buckets] = {}

    def cell(self, *values: str) -> Buckets:
        """The series with these label values; made at first use."""
        found = self.cells.get(values)
        if found is None:
            found = self.cells[values] = Buckets(self._bounds)
        return found

    def lines(self) -> list[str]:
        """Samples in text format."""
        out = []
        for values, cell in self.cells.items():
            labels = _labels(self.labels, values)
            comma = "," if labels else ""
            running = 0
            for bound, count in zip((*map(repr, self._bounds), "+Inf"), cell.counts, strict=True):
                running += count
                out.append(f'{self.name}_bucket{{{labels}{comma}le="{bound}"}} {running}')
            braces = f"{{{labels}}}" if labels else ""
            out += [f"{self.name}_sum{braces} {cell.total:.17g}", f"{self.name}_count{braces} {running}"]
        return out


class Metrics:
    """Every metric of the sidecar."""

    def __init__(self) -> None:
        self.ttft = Histogram(
            "trimtab_ttft_seconds",
            "Request's last byte to first token: measured on streams, else estimated from the engine's headers.",
            LATENCY_BUCKETS,
            "cache",
            "source",
        )
        self.tpot = Histogram(
            "trimtab_tpot_seconds",
            "Time per output token after the first, one observation a request.",
            TPOT_BUCKETS,
            "cache",
            "source",
        )
        self.duration = Histogram(
            "trimtab_request_duration_seconds", "Request's last byte to answer's last byte.", LATENCY_BUCKETS, "cache"
        )
        self.queue_wait = Histogram(
            "trimtab_queue_wait_seconds", "Time in the sidecar's queue before the engine was asked.", LATENCY_BUCKETS
        )
        self.requests = Counter("trimtab_requests_total", "Answered requests.", "route", "code", "cache")
        self.hits = Counter("trimtab_cache_hits_total", "Answers from the cache, by tier.", "tier")
        self.misses = Counter("trimtab_cache_misses_total", "Cacheable requests that were in no tier.")
        self.not_stored = Counter(
            "trimtab_cache_not_stored_total", "Answers that were not stored, by reason.", "reason"
        )
        self.tokens = Counter("trimtab_tokens_total", "Tokens read, generated, or saved by the cache.", "direction")
        self.rejected = Counter("trimtab_rejected_total", "Requests the sidecar refused, by reason.", "reason")
        self.upstream_errors = Counter("trimtab_upstream_errors_total", "Failures of the engine, by kind.", "kind")
        self.disconnects = Counter("trimtab_client_disconnects_total", "Clients that left before their answer's end.")
        self.live_reloads = Counter("trimtab_live_reloads_total", "Readings of live.json, by result.", "result")
        self.context = Counter("trimtab_context_total", "Requests seen by the context policy, by outcome.", "outcome")
        self.context_saved = Counter("trimtab_context_tokens_saved_total", "Prompt tokens the policy took out.")
        self.families: list[Counter | Gauge | Histogram] = [
            value for value in vars(self).values() if isinstance(value, Counter | Histogram)
        ]
        self.extra: list[Callable[[], Mapping[str, float]]] = []
        self._preset()

    def _preset(self) -> None:
        """Series that must exist from the start, so that rates over them are never missing."""
        for cache in ("hit", "miss"):
            self.duration.cell(cache)
            for family in (self.ttft, self.tpot):
                family.cell(cache, "stream")
        self.queue_wait.cell()
        self.misses.cell()
        for tier in ("memory", "redis", "semantic"):
            self.hits.cell(tier)
        for direction in ("in", "out", "saved"):
            self.tokens.cell(direction)
        for reason in ("queue_full", "queue_timeout", "hopeless"):
            self.rejected.cell(reason)
        for kind in ("connect", "reset", "timeout", "protocol", "status", "event"):
            self.upstream_errors.cell(kind)
        self.requests.cell(Route.CHAT.value, "200", "miss")

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Register a value that is read at scrape time."""
        self.families.append(Gauge(name, help_text, read))

    def text(self) -> str:
        """The whole exposition, version 0.0.4."""
        out: list[str] = []
        for family in self.families:
            out += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *family.lines()]
        for read in self.extra:
            for name, value in sorted(read().items()):
                kind = "counter" if name.partition("{")[0].endswith("_total") else "gauge"
                out += [f"# TYPE {name.partition('{')[0]} {kind}", f"{name} {value:.17g}"]
        return "\n".join(out) + "\n"
