"""The operator's own metrics, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from trimtab.controller.objects import Key
from trimtab.controller.queue import Visit

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """All series, in a registry of their own; their number does not grow with the number of LLMDeployments."""

    def __init__(self) -> None:
        # They double the number of series and nobody asks for them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._visits = Counter(
            "trimtab_reconcile_total", "Visits of LLMDeployments by result.", ["result"], registry=self.registry
        )
        self._seconds = Histogram(
            "trimtab_reconcile_seconds", "Duration of a visit.", buckets=_BUCKETS, registry=self.registry
        )
        self._calls = Counter(
            "trimtab_api_requests_total",
            "Requests to the API server; code 0: no answer.",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self._decisions = Counter(
            "trimtab_decisions_total",
            "Decisions of the tuner; applied is false in Advise mode.",
            ["lever", "reason", "applied"],
            registry=self.registry,
        )
        self._ticks = Counter(
            "trimtab_tuning_ticks_total", "Looks at the metrics by result.", ["result"], registry=self.registry
        )
        self._tick_seconds = Histogram(
            "trimtab_tuning_tick_seconds",
            "Duration of a look at the metrics.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.dropped_events = Counter(
            "trimtab_events_dropped_total",
            "Events not written because one object had too many.",
            registry=self.registry,
        )
        self.leading = Gauge("trimtab_leader", "1 while this process leads.", registry=self.registry)
        self._gauges: dict[str, Gauge] = {}

    def visited(self, visit: Visit[Key]) -> None:
        """A visit ended."""
        result = "success" if visit.failure is None else type(visit.failure).__name__
        self._visits.labels(result).inc()
        self._seconds.observe(visit.seconds)

    def called(self, verb: str, kind: str, code: int) -> None:
        """A request to the API server ended."""
        self._calls.labels(verb, kind, str(code)).inc()

    def decided(self, lever: str, reason: str, *, applied: bool) -> None:
        """The tuner decided."""
        self._decisions.labels(lever, reason, str(applied).lower()).inc()

    def ticked(self, result: str, seconds: float) -> None:
        """The tuning loop looked at the metrics."""
        self._ticks.labels(result).inc()
        self._tick_seconds.observe(seconds)

    def watch_value(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when asked for."""
        gauge = self._gauges[name] = Gauge(name, text, registry=self.registry)
        gauge.set_function(value)

    def exposition(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)
