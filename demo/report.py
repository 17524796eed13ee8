"""The table at the end: both runs side by side, and the decisions that explain the difference."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Objective:
    """The SLO of both runs, in milliseconds at P95."""

    ttft_ms: float
    tpot_ms: float


def percentile(report: Mapping[str, Any], metric: str, name: str) -> float | None:
    """A percentile of a replay report in milliseconds, None where nothing was measured."""
    value = (report.get(metric) or {}).get(name)
    return None if value is None else float(value)


def meets(report: Mapping[str, Any], objective: Objective) -> bool:
    """Whether P95 of TTFT and TPOT are within the objective and nothing failed but what was refused on purpose."""
    ttft, tpot = percentile(report, "ttftMs", "p95"), percentile(report, "tpotMs", "p95")
    return ttft is not None and tpot is not None and ttft <= objective.ttft_ms and tpot <= objective.tpot_ms


def compare(baseline: Mapping[str, Any], tuned: Mapping[str, Any], objective: Objective) -> list[Row]:
    """Rows of the table: what, baseline, Trimtab."""
    rows: list[Row] = []
    for metric, label in (("ttftMs", "TTFT"), ("tpotMs", "TPOT"), ("latencyMs", "latency")):
        for name in ("p50", "p95", "p99"):
            values = [percentile(report, metric, name) for report in (baseline, tuned)]
            rows.append((f"{label} {name.upper()}", *_two("-" if v is None else f"{v:,.0f} ms" for v in values)))
    both = (baseline, tuned)
    rows.append(("throughput", *_two(f"{float(report['requestsPerSecond']):.2f} requests/s" for report in both)))
    rows.append(("output", *_two(f"{float(report['tokensPerSecond']['out']):.0f} tokens/s" for report in both)))
    hits = (f"{100 * float(report.get('hitRatio') or 0):.1f} %" for report in (baseline, tuned))
    rows.append(("cache hits", *_two(hits)))
    rows.append(("errors", *_two(str(_errors(report)) for report in (baseline, tuned))))
    rows.append(
        (
            f"SLO (P95 TTFT ≤ {objective.ttft_ms:.0f} ms, TPOT ≤ {objective.tpot_ms:.0f} ms)",
            *_two("met" if meets(report, objective) else "MISSED" for report in (baseline, tuned)),
        )
    )
    return rows


def render(rows: Iterable[Row], titles: Row) -> str:
    """The rows as a plain table."""
    table = [titles, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "-" * (sum(widths) + 4), *lines[1:]])


def decisions(status: Mapping[str, Any]) -> list[str]:
    """The tuner's decisions, oldest first, one line each."""
    return [
        f"{entry['time']}  {entry['lever']}: {_number(entry.get('fromValue'))} → {_number(entry.get('toValue'))}"
        f"  {entry['reason']}: {entry['message']}"
        for entry in reversed(status.get("decisions") or [])
    ]


def _errors(report: Mapping[str, Any]) -> int:
    errors = report.get("errors") or {}
    return sum(int(count) for count in errors.values()) if isinstance(errors, Mapping) else int(errors)


def _two(cells: Iterable[str]) -> tuple[str, str]:
    first, second = cells
    return first, second


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
