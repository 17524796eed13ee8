"""Traffic of one deployment out of Prometheus, as rates and mean lengths a step."""

import math
from typing import Any

from trimtab.telemetry.observe import Key
from trimtab.telemetry.prometheus import Prometheus
from trimtab.telemetry.queries import Labels

Reading = tuple[float, float, float, float]
"""(seconds since the first reading, requests/s, mean prompt tokens, mean answer tokens)"""
DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS = 512.0, 128.0


def read_traffic(
    prometheus: Prometheus, labels: Labels, key: Key, start: float, end: float, step_s: int
) -> list[Reading]:
    """Readings in ascending order; empty when Prometheus knows none. Four range queries.

    Lengths are those of requests that reached the engine, counted by the sidecar; steps without them take the mean of
    all steps.
    """
    matcher = f'{{{labels.namespace}="{_quoted(key[0])}", {labels.deployment}="{_quoted(key[1])}"'
    window = f"[{max(step_s, 60)}s]"
    queries = {
        "requests": f"sum (rate(trimtab_requests_total{matcher}}}{window}))",
        "in": f'sum (rate(trimtab_tokens_total{matcher}, direction="in"}}{window}))',
        "out": f'sum (rate(trimtab_tokens_total{matcher}, direction="out"}}{window}))',
        "served": f'sum (rate(trimtab_requests_total{matcher}, code="200", cache!~"hit|coalesced"}}{window}))',
    }
    series = {name: _points(prometheus.range(query, start, end, step_s)) for name, query in queries.items()}
    requests = series["requests"]
    if not requests:
        return []
    means = [
        _mean(series[direction], series["served"], default)
        for direction, default in (("in", DEFAULT_INPUT_TOKENS), ("out", DEFAULT_OUTPUT_TOKENS))
    ]
    first = min(requests)
    readings = []
    for at, rate in sorted(requests.items()):
        served = series["served"].get(at, 0.0)
        lengths = [
            series[direction].get(at, 0.0) / served if served > 0 else mean
            for direction, mean in zip(("in", "out"), means, strict=True)
        ]
        readings.append((at - first, rate, lengths[0] or means[0], lengths[1] or means[1]))
    return readings


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _points(matrix: list[Any]) -> dict[float, float]:
    found: dict[float, float] = {}
    for series in matrix:
        for at, value in series.get("values", ()):
            number = float(value)
            if math.isfinite(number):
                found[float(at)] = found.get(float(at), 0.0) + number
    return found


def _mean(tokens: dict[float, float], served: dict[float, float], default: float) -> float:
    total = sum(served.values())
    return sum(tokens.values()) / total if total > 0 and tokens else default
