"""What a trace looks like in numbers: shown in reports, used to verify downloads and to write profiles."""

from dataclasses import dataclass

import numpy as np

from trimtab.replay.trace import Floats, Ints, Trace

QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: mean and the values at `QUANTILES`."""

    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Numbers that describe a trace.

    `cv` is the coefficient of variation of the gaps between arrivals; `minute_dispersion` variance/mean of the
    requests in whole minutes, `minute_autocorrelation` their correlation with the minute before, `idle_minutes`
    the share of minutes without a request; `peak_to_mean` is the busiest whole minute over the mean one;
    `length_correlation` the rank correlation of input and output tokens; `repeat_ratio` the share of requests
    whose prompt was seen before.
    """

    requests: int
    span_s: float
    rate: float
    cv: float
    minute_dispersion: float
    minute_autocorrelation: float
    idle_minutes: float
    peak_to_mean: float
    input_tokens: Lengths
    output_tokens: Lengths
    length_correlation: float
    repeat_ratio: float


def measure(trace: Trace) -> Statistics:
    """Describe `trace`; needs at least two requests."""
    if len(trace) < 2:
        raise ValueError(f"trace {trace.name} has {len(trace)} requests: too few to describe")
    gaps = np.diff(trace.arrival_s)
    counts = _minute_counts(trace)
    deviations = counts - counts.mean()
    energy = float((deviations**2).sum())
    lagged = float((deviations[1:] * deviations[:-1]).sum())
    return Statistics(
        requests=len(trace),
        span_s=float(trace.span_s),
        rate=trace.mean_rate,
        cv=float(gaps.std() / gaps.mean()) if gaps.mean() > 0 else 0.0,
        minute_dispersion=float(counts.var() / counts.mean()),
        minute_autocorrelation=lagged / energy if energy > 0 else 0.0,
        idle_minutes=float((counts == 0).mean()),
        peak_to_mean=float(counts.max() / counts.mean()),
        input_tokens=_lengths(trace.input_tokens),
        output_tokens=_lengths(trace.output_tokens),
        length_correlation=_rank_correlation(trace.input_tokens, trace.output_tokens),
        repeat_ratio=1.0 - len(np.unique(trace.prompt_key)) / len(trace),
    )


def _minute_counts(trace: Trace) -> Floats:
    minutes = max(int(trace.span_s // 60), 1)
    counts, _ = np.histogram(trace.arrival_s, np.arange(minutes + 1) * 60.0)
    if counts.sum() == 0:
        return np.array([float(len(trace))])
    return counts.astype(np.float64)


def _lengths(tokens: Ints) -> Lengths:
    values = np.quantile(tokens, QUANTILES)
    return Lengths(float(tokens.mean()), tuple(round(float(v), 1) for v in values))


def _rank_correlation(first: Ints, second: Ints) -> float:
    ranks = [np.argsort(np.argsort(column, kind="stable"), kind="stable").astype(float) for column in (first, second)]
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
