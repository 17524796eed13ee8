"""Requests from ServeGen's client tables (per client and ten minutes: rate and gap distribution).

Layout of the tables and how to draw from them: https://github.com/alibaba/ServeGen (Apache-2.0) and its paper
(NSDI'26). The trace is named by its `…_clients_10min` file; the length histograms lie beside it.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.replay.readers import TraceFormatError, read_text
from trimtab.replay.trace import Floats, Ints, Source, Trace

WINDOW_SECONDS = 600.0
HISTOGRAM_SECONDS = 21_600.0
CLIENTS_MARK = "_clients_10min"
MAX_REQUESTS = 20_000_000


@dataclass(frozen=True, slots=True)
class ClientTable:
    """One row a client and window; arrays of equal length. `weibull` tells the gap distribution (else Gamma)."""

    window: Ints
    client: Ints
    rate: Floats
    weibull: np.ndarray
    shape: Floats

    @property
    def windows(self) -> int:
        """Number of ten-minute windows that the table covers."""
        return int(self.window.max()) + 1 if len(self.window) else 0


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """Probability of length bins in one six-hour window; `low` ascends, a bin ends where the next begins."""

    low: Ints
    high: Ints
    probability: Floats

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """`count` lengths, even within a bin."""
        bins = rng.choice(len(self.low), size=count, p=self.probability)
        spread = self.high[bins] - self.low[bins]
        return self.low[bins] + np.floor(rng.random(count) * spread).astype(np.int64)


def synthesise(
    path: Path, name: str, *, rate: float | None, start_s: float, duration_s: float | None, seed: int
) -> Trace:
    """Draw a trace: `rate` requests/s on average over the chosen window (None: the recorded rate).

    Every client's rate is scaled by the same factor and its gap distribution is kept, so burstiness and the mix of
    clients stay. Windows in which no client is active are gaps of the recording and repeat the window before.
    Raises ValueError when the result would exceed 20 million requests.
    """
    table = _read_clients(read_text(path), path)
    histograms = _read_histograms(path)
    first = int(start_s // WINDOW_SECONDS)
    span = table.windows * WINDOW_SECONDS - start_s if duration_s is None else duration_s
    last = min(int(np.ceil((start_s + span) / WINDOW_SECONDS)), table.windows)
    if last <= first:
        raise ValueError(f"window from {start_s:.0f} s is empty: {name} covers {table.windows * WINDOW_SECONDS:.0f} s")
    span = min(span, table.windows * WINDOW_SECONDS - start_s)
    rows_of = _rows_by_window(table)
    recorded = float(np.mean([table.rate[rows_of[w]].sum() for w in range(first, last)]))
    factor = 1.0 if rate is None else rate / recorded
    expected = recorded * factor * (last - first) * WINDOW_SECONDS
    if expected > MAX_REQUESTS:
        raise ValueError(
            f"{name} at {recorded * factor:.1f} requests/s for {span / 3600:.1f} h is {expected:.3g} requests;"
            " choose a lower rate or a shorter window"
        )
    rng = np.random.default_rng(seed)
    columns = [_draw_window(rng, table, rows_of[w], w, factor, histograms) for w in range(first, last)]
    times, inputs, outputs = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    inside = (times >= start_s) & (times < start_s + span)
    source = Source("folder", str(path), (f"drawn with seed {seed} from client tables, rates × {factor:.6g}",))
    return Trace(
        name=name,
        arrival_s=times[inside] - start_s,
        input_tokens=np.maximum(inputs[inside], 1),
        output_tokens=np.maximum(outputs[inside], 1),
        prompt_key=np.arange(int(inside.sum()), dtype=np.int64),
        span_s=span,
        source=source,
    )


def _read_clients(text: str, path: Path) -> ClientTable:
    rows = csv.DictReader(io.StringIO(text))
    needed = {"t_s", "client", "rate_rps", "dist", "shape"}
    if rows.fieldnames is None or not needed <= set(rows.fieldnames):
        raise TraceFormatError(f"{path}: a ServeGen client table has the columns {sorted(needed)}")
    parsed = [
        (float(r["t_s"]), int(r["client"]), float(r["rate_rps"]), r["dist"] == "Weibull", float(r["shape"]))
        for r in rows
    ]
    times, clients, rates, weibull, shapes = zip(*parsed, strict=True)
    return ClientTable(
        window=(np.array(times) // WINDOW_SECONDS).astype(np.int64),
        client=np.array(clients),
        rate=np.array(rates),
        weibull=np.array(weibull),
        shape=np.array(shapes),
    )


def _rows_by_window(table: ClientTable) -> list[Ints]:
    order = np.argsort(table.window, kind="stable")
    bounds = np.searchsorted(table.window[order], np.arange(table.windows + 1))
    rows = [order[bounds[w] : bounds[w + 1]].astype(np.int64) for w in range(table.windows)]
    filled = next((part for part in rows if len(part)), np.empty(0, dtype=np.int64))
    for number, part in enumerate(rows):
        if len(part) == 0 or float(table.rate[part].sum()) <= 0:
            rows[number] = filled
        filled = rows[number]
    return rows


def _read_histograms(clients_path: Path) -> dict[str, dict[int, LengthHistogram]]:
    path = clients_path.with_name(clients_path.name.replace(CLIENTS_MARK, "_lenhist_6h"))
    if not path.exists():
        raise TraceFormatError(f"{clients_path}: the length histograms {path.name} must lie beside it")
    groups: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for row in csv.DictReader(io.StringIO(read_text(path))):
        key = (row["field"], int(float(row["t_s"]) // HISTOGRAM_SECONDS))
        groups.setdefault(key, []).append((int(float(row["bin_lo_tokens"])), float(row["prob"])))
    result: dict[str, dict[int, LengthHistogram]] = {"input_tokens": {}, "output_tokens": {}}
    for (field, number), bins in groups.items():
        bins.sort()
        low = np.array([b for b, _ in bins], dtype=np.int64)
        weight = np.array([p for _, p in bins])
        # Bins are exact below 16 tokens and quarter octaves above; empty bins are not listed.
        width = np.where(low < 16, 1, np.ceil(low * (2**0.25 - 1)).astype(np.int64))
        result.setdefault(field, {})[number] = LengthHistogram(low, low + width, weight / weight.sum())
    if not result["input_tokens"] or not result["output_tokens"]:
        raise TraceFormatError(f"{path}: no histogram of input_tokens or of output_tokens")
    return result


def _nearest_histogram(histograms: dict[int, LengthHistogram], number: int) -> LengthHistogram:
    return histograms[min(histograms, key=lambda known: (abs(known - number), known))]


def _draw_window(
    rng: np.random.Generator,
    table: ClientTable,
    rows: Ints,
    number: int,
    factor: float,
    histograms: dict[str, dict[int, LengthHistogram]],
) -> tuple[Floats, Ints, Ints]:
    """Arrival times (absolute seconds, ascending) and lengths of one ten-minute window."""
    expected = table.rate[rows] * factor * WINDOW_SECONDS
    counts = np.floor(expected + rng.random(len(rows))).astype(np.int64)
    parts = [
        _draw_client(rng, int(count), bool(table.weibull[row]), float(table.shape[row]))
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True)
        if count
    ]
    times = np.sort(np.concatenate(parts)) if parts else np.empty(0)
    period = int(number * WINDOW_SECONDS // HISTOGRAM_SECONDS)
    lengths = [
        _nearest_histogram(histograms[field], period).draw(rng, len(times))
        for field in ("input_tokens", "output_tokens")
    ]
    return (number + times) * WINDOW_SECONDS, lengths[0], lengths[1]


def _draw_client(rng: np.random.Generator, count: int, weibull: bool, shape: float) -> Floats:
    """`count` arrivals in [0, 1): gaps of the client's distribution, stretched so that they fill the window."""
    gaps = rng.weibull(shape, count + 1) if weibull else rng.gamma(shape, size=count + 1)
    total = float(gaps.sum())
    if not np.isfinite(total) or total <= 0:
        return np.sort(rng.random(count))
    # The window starts at a random point of the first gap.
    offset = rng.random() * gaps[0]
    return np.asarray(np.minimum((np.cumsum(gaps[:count]) - offset) / total, np.nextafter(1.0, 0.0)))
