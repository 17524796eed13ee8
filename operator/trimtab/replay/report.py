"""What a replay showed: percentiles, rates, errors, attainment; as JSON and as a table."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimtab.replay.client import Outcomes
from trimtab.replay.statistics import measure
from trimtab.replay.trace import Floats, Trace

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Objective:
    """Upper bounds that one request must keep, in seconds; None: no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None

    def __bool__(self) -> bool:
        return any(bound is not None for bound in (self.ttft_s, self.tpot_s, self.latency_s))


def build_report(trace: Trace, outcomes: Outcomes, objective: Objective, url: str) -> dict[str, Any]:
    """The JSON of a replay. Times in milliseconds; null where nothing was measured.

    TTFT and TPOT (time between tokens after the first) exist for streamed answers only. Latency and TTFT count
    from the scheduled time. `attainment` is the share of all requests, failed ones included, that kept every bound.
    """
    succeeded = np.array([code == "200" for code in outcomes.code], dtype=bool)
    ttft, tpot, latency = derive_times(outcomes, succeeded)
    ended = outcomes.done_s[np.isfinite(outcomes.done_s)]
    duration = float(max(ended.max(initial=0.0), trace.span_s))
    known_hits = [hit for hit in outcomes.hit if hit is not None]
    lag = outcomes.sent_s - outcomes.scheduled_s
    report: dict[str, Any] = {
        "trace": _describe(trace),
        "url": url,
        "durationSeconds": round(duration, 3),
        "requests": len(trace),
        "succeeded": int(succeeded.sum()),
        "errors": dict(sorted(Counter(code or "unsent" for code in outcomes.code if code != "200").items())),
        "requestsPerSecond": round(float(succeeded.sum()) / duration, 3) if duration else 0.0,
        "tokensPerSecond": {
            "in": round(float(trace.input_tokens[succeeded].sum()) / duration, 1) if duration else 0.0,
            "out": round(float(outcomes.tokens[succeeded].sum()) / duration, 1) if duration else 0.0,
        },
        "latencyMs": _percentiles(latency),
        "ttftMs": _percentiles(ttft),
        "tpotMs": _percentiles(tpot),
        "hitRatio": round(sum(known_hits) / len(known_hits), 4) if known_hits else None,
        "sendLagMs": {**(_percentiles(lag) or {}), "max": _milliseconds(np.nanmax(lag)) if _any(lag) else None},
        "slo": None,
    }
    if objective:
        report["slo"] = {
            "ttftMs": _bound(objective.ttft_s),
            "tpotMs": _bound(objective.tpot_s),
            "latencyMs": _bound(objective.latency_s),
            "attainment": round(float(attained(succeeded, ttft, tpot, latency, objective).mean()), 5),
        }
    return report


def derive_times(outcomes: Outcomes, succeeded: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """(TTFT, TPOT, latency) of each request in seconds, NaN where a request has none."""
    with np.errstate(invalid="ignore"):
        latency = np.where(succeeded, outcomes.done_s - outcomes.scheduled_s, np.nan)
        ttft = np.where(succeeded, outcomes.first_s - outcomes.scheduled_s, np.nan)
        several = succeeded & (outcomes.tokens > 1) & np.isfinite(outcomes.first_s)
        gaps = np.maximum(outcomes.tokens - 1, 1)
        tpot = np.where(several, (outcomes.done_s - outcomes.first_s) / gaps, np.nan)
    return ttft, tpot, latency


def attained(succeeded: np.ndarray, ttft: Floats, tpot: Floats, latency: Floats, objective: Objective) -> np.ndarray:
    """Which requests kept every stated bound; a time that a request does not have cannot break one."""
    kept = succeeded.copy()
    for values, bound in ((ttft, objective.ttft_s), (tpot, objective.tpot_s), (latency, objective.latency_s)):
        if bound is not None:
            kept &= ~(values > bound)
    return kept


def _describe(trace: Trace) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": trace.name,
        "origin": trace.source.origin,
        "detail": trace.source.detail,
        "notes": list(trace.source.notes),
        "requests": len(trace),
        "spanSeconds": round(trace.span_s, 3),
        "statistics": None,
    }
    if len(trace) >= 2:
        found = asdict(measure(trace))
        for column in ("input_tokens", "output_tokens"):
            found[column] = {"mean": round(found[column]["mean"], 1), "p50": found[column]["quantiles"][5]}
        document["statistics"] = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    return document


def _any(values: Floats) -> bool:
    return bool(np.isfinite(values).any())


def _milliseconds(seconds: float) -> float:
    return round(float(seconds) * 1000.0, 2)


def _bound(seconds: float | None) -> float | None:
    return None if seconds is None else _milliseconds(seconds)


def _percentiles(values: Floats) -> dict[str, float] | None:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None
    return {f"p{p}": _milliseconds(float(np.percentile(known, p))) for p in PERCENTILES}


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The report as (what, value) pairs for a table."""
    trace = report["trace"]
    lines = [
        ("Trace", f"{trace['name']} ({trace['origin']}: {trace['detail']})"),
        *(("", note) for note in trace["notes"]),
        ("Requests", f"{report['requests']} in {report['durationSeconds']:.1f} s, {report['succeeded']} succeeded"),
        ("Errors", ", ".join(f"{code}: {count}" for code, count in report["errors"].items()) or "none"),
        ("Requests/s", f"{report['requestsPerSecond']:.2f}"),
        ("Tokens/s", f"{report['tokensPerSecond']['in']:.0f} in, {report['tokensPerSecond']['out']:.0f} out"),
        ("Latency", _times(report["latencyMs"])),
        ("TTFT", _times(report["ttftMs"])),
        ("TPOT", _times(report["tpotMs"])),
        ("Cache hits", "no Cache-Status seen" if report["hitRatio"] is None else f"{report['hitRatio']:.1%}"),
        ("Sent late by", _times(report["sendLagMs"] if "p50" in report["sendLagMs"] else None)),
    ]
    if report["slo"]:
        bounds = ((k.removesuffix("Ms").upper(), v) for k, v in report["slo"].items() if k != "attainment" and v)
        stated = ", ".join(f"{name} ≤ {value:.0f} ms" for name, value in bounds)
        lines.append(("Within SLO", f"{report['slo']['attainment']:.2%} ({stated})"))
    return lines


def _times(values: dict[str, float] | None) -> str:
    if values is None:
        return "not measured"
    return "  ".join(f"P{p} {values[f'p{p}']:,.0f} ms" for p in PERCENTILES)
