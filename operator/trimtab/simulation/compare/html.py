"""report.html: the comparison with plots, in one file that opens without a network (inline SVG, no scripts)."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.simulation.compare.fluid import Run
from trimtab.simulation.compare.report import Scenario

WIDTH, HEIGHT, LEFT, BOTTOM = 960, 220, 48, 24
POINTS = 480
COLOURS = ("#0b6e4f", "#c1440e", "#3b5ba5", "#8c5fa8", "#b08900", "#5c6b73", "#a83254", "#2a9d8f")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1c2321;
  background: #fff; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; border-bottom: 1px solid #d7dcda;
  text-align: right; } th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; } .axis { stroke: #8a9490; stroke-width: 1; } text { font-size: 12px; fill: #4a5452; }
@media (prefers-color-scheme: dark) { body { background: #161a19; color: #e6ebe9; } text { fill: #b3bdba; }
  th, td { border-color: #39413e; } }
"""


def write_html(path: Path, document: Mapping[str, Any], scenario: Scenario, runs: Mapping[str, Run]) -> None:
    """Write the report of `trimtab simulate`."""
    hours = scenario.load.seconds / 3600.0
    kept = {name: _late_share(scenario, played) for name, played in runs.items()}
    plots = [
        ("Load and ready replicas", {"load": scenario.load.need, **{n: r.ready for n, r in runs.items()}}),
        ("Time to first token, worst in each step (s)", {n: _by_second(scenario, r.ttft_s) for n, r in runs.items()}),
        ("Time per output token, worst in each step (s)", {n: _by_second(scenario, r.tpot_s) for n, r in runs.items()}),
        ("Share of requests outside the objective", kept),
        ("GPU-hours so far (replicas)", {n: np.cumsum(r.paid) / 3600.0 for n, r in runs.items()}),
    ]
    body = "".join(f"<h2>{html.escape(title)}</h2>{_plot(series, hours)}" for title, series in plots)
    title = html.escape(f"{document['trace']}: {document['requests']} requests in {hours:.1f} h")
    low, high = document["oracle"]["gpuHoursLow"], document["oracle"]["gpuHoursHigh"]
    note = (
        f"Objective {html.escape(str(document['slo']))}; cold start {document['coldStartSeconds']} s;"
        f" clairvoyant optimum between {low:.2f} and {high:.2f} GPU-hours."
        " Fluid model of the fleet: differences under 3 % are noise."
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{note}</p>{_table(document)}{body}</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _table(document: Mapping[str, Any]) -> str:
    head = "<tr><th>policy<th>within SLO<th>GPU-hours<th>× optimum<th>TTFT p99<th>TPOT p99<th>scale events</tr>"
    rows = "".join(
        f"<tr><td>{html.escape(row['name'])}<td>{row['sloAttainment']:.2%}<td>{row['gpuHours']:.2f}"
        f"<td>{row['costRatioToOracle']:.2f}<td>{row['p99']['ttftMs']:,.0f} ms<td>{row['p99']['tpotMs']:,.1f} ms"
        f"<td>{row['scaleEvents']}</tr>"
        for row in document["policies"]
    )
    return f"<table>{head}{rows}</table>"


def _by_second(scenario: Scenario, values: NDArray[np.float64]) -> NDArray[np.float64]:
    worst = np.zeros(scenario.load.seconds)
    np.maximum.at(worst, scenario.load.second, values)
    return worst


def _late_share(scenario: Scenario, played: Run) -> NDArray[np.float64]:
    late = np.zeros(len(played.ttft_s))
    for values, targets in (
        (played.ttft_s, scenario.slo.ttft),
        (played.tpot_s, scenario.slo.tpot),
        (played.latency_s, scenario.slo.latency),
    ):
        if targets:
            late = np.maximum(late, values > max(targets.values()))
    broken = np.bincount(scenario.load.second, weights=late, minlength=scenario.load.seconds)
    return np.cumsum(broken) / np.maximum(np.cumsum(scenario.load.counts), 1.0)


def _plot(series: Mapping[str, NDArray[np.float64]], hours: float) -> str:
    thin = {name: _thin(values) for name, values in series.items()}
    top = max((float(values.max(initial=0.0)) for values in thin.values()), default=1.0) or 1.0
    lines, legend = [], []
    for number, (name, values) in enumerate(thin.items()):
        colour = COLOURS[number % len(COLOURS)]
        xs = LEFT + np.linspace(0, WIDTH - LEFT, len(values))
        ys = (HEIGHT - BOTTOM) * (1 - values / top)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        legend.append(f'<span style="color:{colour}">■</span> {html.escape(name)}')
    axes = (
        f'<line class="axis" x1="{LEFT}" y1="0" x2="{LEFT}" y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="2" y="12">{top:.3g}</text><text x="2" y="{HEIGHT - BOTTOM}">0</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">0 h</text><text x="{WIDTH - 60}" y="{HEIGHT - 6}">{hours:.1f} h</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{axes}{"".join(lines)}</svg><p>{" ".join(legend)}</p>'


def _thin(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `POINTS` values: the highest of each stretch."""
    width = max(int(np.ceil(len(values) / POINTS)), 1)
    padded = np.pad(values, (0, -len(values) % width), mode="edge")
    return np.asarray(padded.reshape(-1, width).max(axis=1))
