"""One Observation a deployment, out of the answers to the queries of a tick."""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.telemetry.histogram import quantile
from trimtab.telemetry.prometheus import Prometheus, QueryRejectedError
from trimtab.telemetry.queries import HISTOGRAMS, Labels, history_query, tick_queries
from trimtab.tuning.types import Observation, Percentiles

_LOG = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name)"""
WITHOUT_ENGINE = frozenset({"hit", "coalesced"})
REFUSED = frozenset({"429"})


@dataclass(slots=True)
class _Values:
    """Raw numbers of one deployment, by query and by its further label values."""

    plain: dict[str, float] = field(default_factory=dict)
    labelled: dict[str, list[tuple[Mapping[str, str], float]]] = field(default_factory=lambda: defaultdict(list))


class Telemetry:
    """Observes all deployments; blocking (run it in a thread), and safe to use from one thread at a time."""

    def __init__(
        self, prometheus: Prometheus, labels: Labels | None = None, window_s: int = 60, recent_s: int = 30
    ) -> None:
        self._prometheus = prometheus
        self._labels = labels or Labels()
        self._window_s = window_s
        self._queries = tick_queries(self._labels, window_s, recent_s)

    @property
    def queries_per_tick(self) -> int:
        """How many queries `observe` sends, whatever the number of deployments."""
        return len(self._queries)

    def observe(self, now: float) -> dict[Key, Observation]:
        """Observations of all deployments that Prometheus knows at clock time `now`.

        A deployment that is not in the result has no metrics: use `Observation(time=now)` for it. The fields about
        replicas are left out: they come from Kubernetes. Raises TelemetryUnavailableError when Prometheus cannot be
        asked; a query that it refuses leaves its fields at None and is logged.
        """
        answers: dict[str, list[Any]] = {}
        for name, query in self._queries.items():
            try:
                answers[name] = self._prometheus.instant(query, now)
            except QueryRejectedError as error:
                _LOG.warning("Prometheus refused query %s (%s): %s", name, query, error)
                answers[name] = []
        return assemble(answers, self._labels, now, float(self._window_s))

    def history(self, now: float, hours: float = 6.0, step_s: int = 60) -> dict[Key, tuple[tuple[float, float], ...]]:
        """(clock time, requests/s that needed the engine), oldest first, of every deployment: one query.

        For the start of the operator, whose memory is empty then.
        """
        query = history_query(self._labels, step_s)
        found: dict[Key, tuple[tuple[float, float], ...]] = {}
        for series in self._prometheus.range(query, now - hours * 3600.0, now, step_s):
            key = _key(series.get("metric", {}), self._labels)
            if key is not None:
                points = ((float(t), float(v)) for t, v in series.get("values", ()))
                found[key] = tuple((t, v) for t, v in points if math.isfinite(v))
        return found


def assemble(answers: Mapping[str, list[Any]], labels: Labels, now: float, window_s: float) -> dict[Key, Observation]:
    """Build the observations from the result vectors of `tick_queries`."""
    collected: dict[Key, _Values] = defaultdict(_Values)
    for name, vector in answers.items():
        for sample in vector:
            metric = sample.get("metric", {})
            key = _key(metric, labels)
            value = _number(sample)
            if key is None or value is None:
                continue
            rest = {k: v for k, v in metric.items() if k not in (labels.namespace, labels.deployment)}
            if rest:
                collected[key].labelled[name].append((rest, value))
            else:
                collected[key].plain[name] = value
    return {key: _observation(values, now, window_s) for key, values in collected.items()}


def _key(metric: Mapping[str, str], labels: Labels) -> Key | None:
    namespace, name = metric.get(labels.namespace), metric.get(labels.deployment)
    return (namespace, name) if namespace and name else None


def _number(sample: Mapping[str, Any]) -> float | None:
    """The sample's value; NaN (a quotient of zeros: nothing happened) and infinity count as not measured."""
    try:
        value = float(sample["value"][1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _observation(values: _Values, now: float, window_s: float) -> Observation:
    plain = values.plain
    requests = values.labelled.get("requests")
    tokens = {labels.get("direction"): rate for labels, rate in values.labelled.get("tokens", ())}
    answered = hits = refused = failed = 0.0
    for labels, rate in requests or ():
        answered += rate
        code = labels.get("code", "")
        if labels.get("cache") in WITHOUT_ENGINE:
            hits += rate
        elif code in REFUSED:
            refused += rate
        elif code.startswith("5"):
            failed += rate
    known = requests is not None
    arrivals = max(answered + plain.get("held_change", 0.0) / window_s, 0.0) if known else None
    latest = plain.get("requests_now")
    arrivals_now = None if latest is None else max(latest + plain.get("held_change_now", 0.0), 0.0)
    pods = plain.get("pods")
    quantiles = {name: _percentiles(values.labelled.get(f"{name}_buckets", [])) for name in HISTOGRAMS}
    return Observation(
        time=now,
        age_s=plain.get("age"),
        window_s=window_s,
        pods_reporting=int(pods) if pods is not None else None,
        arrivals_per_s=arrivals,
        arrivals_now_per_s=arrivals_now,
        served_per_s=max(answered - hits - refused - failed, 0.0) if known else None,
        rejected_per_s=refused if known else None,
        errors_per_s=failed if known else None,
        hit_ratio=hits / answered if answered > 0 else None,
        in_flight=plain.get("in_flight"),
        queued=plain.get("queued"),
        limit=plain.get("limit"),
        tokens_in_per_s=tokens.get("in"),
        tokens_out_per_s=tokens.get("out"),
        ttft=quantiles["ttft"][0],
        tpot=quantiles["tpot"][0],
        latency=quantiles["latency"][0],
        ttft_mean=_mean(plain.get("ttft_sum"), quantiles["ttft"][1]),
        tpot_mean=_mean(plain.get("tpot_sum"), quantiles["tpot"][1]),
        latency_mean=_mean(plain.get("latency_sum"), quantiles["latency"][1]),
        queue_wait_mean=_mean(plain.get("wait_sum"), plain.get("wait_count")),
        step_s=plain.get("step"),
    )


def _percentiles(buckets: list[tuple[Mapping[str, str], float]]) -> tuple[Percentiles, float | None]:
    """(p50, p95, p99; observations/s)."""
    pairs = [(float(labels["le"]), rate) for labels, rate in buckets if "le" in labels]
    total = max((rate for _, rate in pairs), default=None)
    return Percentiles(*(quantile(pairs, share) for share in (0.5, 0.95, 0.99))), total


def _mean(total: float | None, count: float | None) -> float | None:
    return total / count if total is not None and count else None
