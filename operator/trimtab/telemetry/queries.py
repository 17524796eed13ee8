"""The PromQL of one tick: every query is grouped by deployment, so their number never depends on how many there are.

Grouping by exactly two labels also makes the result independent of labels that a Prometheus adds by itself (`cluster`,
`prometheus`, `endpoint`, …). `rate` over a window needs two samples in it: the window should span at least four
scrapes.
"""

import re
from dataclasses import dataclass

from trimtab.engines.base import Signal
from trimtab.engines.registry import ENGINES

_LABEL = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]*$")


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of the labels that tell deployments apart; scrape configurations differ in them."""

    namespace: str = "namespace"
    deployment: str = "llmdeployment"

    def __post_init__(self) -> None:
        for label in (self.namespace, self.deployment):
            if not _LABEL.match(label):
                raise ValueError(f"{label!r} is no name of a Prometheus label")

    def group(self, *more: str) -> str:
        """The `by (…)` clause."""
        return f"by ({', '.join((self.namespace, self.deployment, *more))})"


def tick_queries(labels: Labels, window_s: int, recent_s: int = 30) -> dict[str, str]:
    """Name → instant query. Names are the keys that `observe.assemble` reads.

    `recent_s` should be two scrape intervals: the latest arrivals are what the last two scrapes differ by.
    """
    by = labels.group()
    window, recent = f"[{window_s}s]", f"[{recent_s}s]"
    known = f'{labels.deployment}!=""'
    engine = f'{{{known}, cache="miss"}}'
    queries = {
        "requests": f"sum {labels.group('code', 'cache')} (rate(trimtab_requests_total{{{known}}}{window}))",
        "tokens": f"sum {labels.group('direction')} (rate(trimtab_tokens_total{{{known}}}{window}))",
        "in_flight": f"sum {by} (avg_over_time(trimtab_in_flight{{{known}}}{window}))",
        "queued": f"sum {by} (avg_over_time(trimtab_queue_depth{{{known}}}{window}))",
        # Requests are counted when answered: what has arrived since is in the engines or waiting.
        "held_change": f"sum {by} (delta(trimtab_in_flight{{{known}}}{window})"
        f" + delta(trimtab_queue_depth{{{known}}}{window}))",
        "requests_now": f"sum {by} (rate(trimtab_requests_total{{{known}}}{recent}))",
        "held_change_now": f"sum {by} (delta(trimtab_in_flight{{{known}}}{recent})"
        f" + delta(trimtab_queue_depth{{{known}}}{recent})) / {recent_s}",
        "limit": f"max {by} (trimtab_limit{{{known}}})",
        "pods": f"count {by} (trimtab_limit{{{known}}})",
        "age": f"max {by} (time() - timestamp(trimtab_limit{{{known}}}))",
        "wait_sum": f"sum {by} (rate(trimtab_queue_wait_seconds_sum{{{known}}}{window}))",
        "wait_count": f"sum {by} (rate(trimtab_queue_wait_seconds_count{{{known}}}{window}))",
        "step": _engine_mean(Signal.DECODE_STEP_SECONDS, labels, window),
    }
    for name, metric in HISTOGRAMS.items():
        queries[f"{name}_buckets"] = f"sum {labels.group('le')} (rate({metric}_bucket{engine}{window}))"
        queries[f"{name}_sum"] = f"sum {by} (rate({metric}_sum{engine}{window}))"
    return queries


def _engine_mean(signal: Signal, labels: Labels, window: str) -> str:
    """Mean of a histogram that each engine calls by a name of its own; a deployment has one engine."""
    by = labels.group()
    means: list[str] = []
    for name in sorted(ENGINES):
        metric = ENGINES[name].metrics.get(signal)
        if metric is None:
            continue
        matchers = ", ".join(part for part in (f'{labels.deployment}!=""', metric.selector) if part)
        total, count = (f"sum {by} (rate({metric.name}_{part}{{{matchers}}}{window}))" for part in ("sum", "count"))
        means.append(f"{total} / {count}")
    return " or ".join(means)


HISTOGRAMS = {
    "ttft": "trimtab_ttft_seconds",
    "tpot": "trimtab_tpot_seconds",
    "latency": "trimtab_request_duration_seconds",
}


def history_query(labels: Labels, step_s: int) -> str:
    """Range query of the requests/s that needed the engine, for the start of the operator."""
    window = f"[{max(step_s, 60)}s]"
    misses = f'{{{labels.deployment}!="", cache!~"hit|coalesced"}}'
    return f"sum {labels.group()} (rate(trimtab_requests_total{misses}{window}))"
