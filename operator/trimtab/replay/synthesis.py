"""A trace generated from a profile: the published statistics of a trace, for machines without the trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.replay.statistics import QUANTILES, Lengths, measure
from trimtab.replay.trace import Floats, Ints, Source, Trace, with_repeats

MINUTE = 60.0
# Gap variation is found by bisection: the result depends on it monotonically up to noise.
SEARCH_STEPS = 10
MAX_GAP_CV = 40.0


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a trace's arrivals and lengths; see `statistics.Statistics` for the terms.

    `peak_to_trough` above 1 adds a daily wave. `sources` says where each figure was published.
    """

    name: str
    rate: float
    span_s: float
    cv: float
    minute_dispersion: float
    minute_autocorrelation: float
    idle_minutes: float
    input_tokens: Lengths
    output_tokens: Lengths
    length_correlation: float
    repeat_ratio: float
    peak_to_trough: float
    sources: tuple[str, ...]


def profile_from_json(name: str, entry: dict[str, Any]) -> Profile:
    """Read one profile of profiles.json; a length without quantiles is taken as lognormal through p50 and p95."""
    return Profile(
        name=name,
        rate=float(entry["rate"]),
        span_s=float(entry["span_s"]),
        cv=float(entry["cv"]),
        minute_dispersion=float(entry.get("minute_dispersion", 1.0)),
        minute_autocorrelation=float(entry.get("minute_autocorrelation", 0.0)),
        idle_minutes=float(entry.get("idle_minutes", 0.0)),
        input_tokens=_lengths_from_json(entry["input_tokens"]),
        output_tokens=_lengths_from_json(entry["output_tokens"]),
        length_correlation=float(entry.get("length_correlation", 0.0)),
        repeat_ratio=float(entry.get("repeat_ratio", 0.0)),
        peak_to_trough=float(entry.get("peak_to_trough", 1.0)),
        sources=tuple(entry["sources"]),
    )


def _lengths_from_json(entry: dict[str, Any]) -> Lengths:
    if "quantiles" in entry:
        return Lengths(float(entry["mean"]), tuple(float(q) for q in entry["quantiles"]))
    sigma = np.log(entry["p95"] / entry["p50"]) / 1.6449
    scores = (-3.0, -2.3263, -1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449, 2.3263, 3.0)
    quantiles = tuple(float(max(entry["p50"] * np.exp(sigma * z), 1.0)) for z in scores)
    return Lengths(float(entry["p50"] * np.exp(sigma**2 / 2)), quantiles)


def generate(
    profile: Profile, *, rate: float | None, start_s: float = 0.0, duration_s: float | None, seed: int
) -> Trace:
    """A trace with the profile's statistics; `rate` and `duration_s` default to the profile's own.

    Reproducible by seed. Rate per minute: a daily wave times zero-inflated Gamma factors with the published
    dispersion and autocorrelation; gaps within a minute: Gamma, as varied as the published coefficient of variation
    of all gaps asks for; lengths: the published quantiles, rank-correlated.
    """
    span = duration_s if duration_s is not None else profile.span_s
    mean = profile.rate if rate is None else rate
    if mean <= 0 or span <= 0:
        raise ValueError(f"a generated trace needs a positive rate and duration, got {mean} and {span}")
    minutes = max(int(np.ceil(span / MINUTE)), 1)
    low, high = 0.2, MAX_GAP_CV
    times = np.empty(0)
    for _ in range(SEARCH_STEPS):
        middle = float(np.sqrt(low * high))
        times = _arrivals(_minute_levels(profile, start_s, minutes, middle, seed), mean, span, middle, seed)
        gaps = np.diff(times)
        if len(gaps) < 2 or gaps.mean() <= 0:
            break
        low, high = (middle, high) if gaps.std() / gaps.mean() < profile.cv else (low, middle)
    inputs, outputs = _draw_lengths(profile, len(times), seed)
    plain = Trace(
        name=profile.name,
        arrival_s=times,
        input_tokens=inputs,
        output_tokens=outputs,
        prompt_key=np.arange(len(times), dtype=np.int64),
        span_s=float(span),
        source=Source("generated", "; ".join(profile.sources), _notes(profile)),
    )
    return with_repeats(plain, profile.repeat_ratio, seed)


def _notes(profile: Profile) -> tuple[str, ...]:
    return (
        f"generated from published statistics of {profile.name}, not the trace itself",
        "prompts share no prefixes other than whole repeats",
    )


def _minute_levels(profile: Profile, start_s: float, minutes: int, gap_cv: float, seed: int) -> Floats:
    """Relative rate of each minute, mean 1; the gaps' own variation already disperses the counts by its square."""
    rng = np.random.default_rng([seed, 1])
    per_minute = profile.rate * MINUTE
    variance = max(profile.minute_dispersion - max(gap_cv, 1.0) ** 2, 0.0) / per_minute
    wave = np.ones(minutes)
    if profile.peak_to_trough > 1:
        swing = (profile.peak_to_trough - 1) / (profile.peak_to_trough + 1)
        phase = 2 * np.pi * (start_s + MINUTE * np.arange(minutes)) / 86_400.0
        wave = 1 - swing * np.cos(phase)
        variance = max(variance - swing**2 / 2, 0.0)
    busy = 1.0 - profile.idle_minutes
    # Var of (zero with probability 1-busy, else Gamma of mean 1/busy) = variance → squared variation of the Gamma.
    squared = max((1 + variance) * busy - 1.0, 0.0)
    rho = float(np.clip(profile.minute_autocorrelation, -0.95, 0.99))
    factors = np.ones(minutes) if squared <= 0 else _correlated_gamma(rng, minutes, 1.0 / squared, rho)
    if profile.idle_minutes > 0:
        factors = np.where(rng.random(minutes) < profile.idle_minutes, 0.0, factors)
        if not factors.any():
            factors[:] = 1.0
    levels = wave * factors
    return np.asarray(levels / levels.mean(), dtype=np.float64)


def _correlated_gamma(rng: np.random.Generator, count: int, shape: float, rho: float) -> Floats:
    """Gamma factors of mean 1 whose ranks follow an AR(1) process."""
    noise = rng.standard_normal(count)
    series = np.empty(count)
    series[0] = noise[0]
    for i in range(1, count):
        series[i] = rho * series[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    drawn = np.sort(rng.gamma(shape, 1.0 / shape, count))
    return drawn[np.argsort(np.argsort(series))]


def _arrivals(level: Floats, rate: float, span: float, gap_cv: float, seed: int) -> Floats:
    """Renewal process with Gamma gaps in operational time, mapped through the minute levels."""
    rng = np.random.default_rng([seed, 2])
    edges = np.minimum(np.arange(len(level) + 1) * MINUTE, span)
    cumulative = np.concatenate(([0.0], np.cumsum(level * np.diff(edges)))) * rate
    total = cumulative[-1]
    shape = 1.0 / gap_cv**2
    gaps = rng.gamma(shape, 1.0 / shape, int(total * 1.1 + 20 * gap_cv * np.sqrt(total) + 50))
    operational = np.cumsum(gaps)
    # The sample mean of few, heavy-tailed gaps is off; the published rate is the surer figure.
    count = max(round(total), 2)
    operational = operational[:count] * (total / operational[count])
    steps = np.concatenate(([True], np.diff(cumulative) > 0))
    keep = steps | np.concatenate((steps[1:], [False]))
    times = np.interp(operational, cumulative[keep] + 1e-9 * np.arange(int(keep.sum())), edges[keep])
    return np.maximum.accumulate(times)


def _draw_lengths(profile: Profile, count: int, seed: int) -> tuple[Ints, Ints]:
    rng = np.random.default_rng([seed, 3])
    # Pearson correlation of the normals that gives the wanted rank correlation.
    pearson = 2 * np.sin(np.pi * float(np.clip(profile.length_correlation, -1, 1)) / 6)
    first = rng.standard_normal(count)
    second = pearson * first + np.sqrt(max(1 - pearson**2, 0.0)) * rng.standard_normal(count)
    columns = []
    for scores, lengths in ((first, profile.input_tokens), (second, profile.output_tokens)):
        uniform = (np.argsort(np.argsort(scores)) + 0.5) / max(count, 1)
        columns.append(_sample_quantiles(uniform, lengths))
    return columns[0], columns[1]


def _sample_quantiles(uniform: Floats, lengths: Lengths) -> Ints:
    """Invert the published quantiles, log-linear between them."""
    values = np.log(np.maximum(np.array(lengths.quantiles), 1.0))
    drawn: Ints = np.maximum(np.round(np.exp(np.interp(uniform, QUANTILES, values))), 1).astype(np.int64)
    return drawn


def profile_of(trace: Trace, sources: tuple[str, ...]) -> dict[str, Any]:
    """The profiles.json entry of a trace: how the shipped profiles were computed from the public files."""
    found = measure(trace)
    return {
        "rate": round(found.rate, 4),
        "span_s": round(found.span_s, 1),
        "requests": found.requests,
        "cv": round(found.cv, 3),
        "minute_dispersion": round(found.minute_dispersion, 2),
        "minute_autocorrelation": round(found.minute_autocorrelation, 3),
        "idle_minutes": round(found.idle_minutes, 3),
        "peak_to_mean": round(found.peak_to_mean, 2),
        "input_tokens": {"mean": round(found.input_tokens.mean, 1), "quantiles": list(found.input_tokens.quantiles)},
        "output_tokens": {"mean": round(found.output_tokens.mean, 1), "quantiles": list(found.output_tokens.quantiles)},
        "length_correlation": round(found.length_correlation, 3),
        "repeat_ratio": round(found.repeat_ratio, 4),
        "sources": list(sources),
    }


def arrivals_from_rates(
    readings: Sequence[tuple[float, float, float, float]], step_s: float, seed: int
) -> list[tuple[float, int, int]]:
    """Poisson arrivals for readings of (second, requests/s, prompt tokens, answer tokens), each `step_s` long."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, int, int]] = []
    for at, rate, tokens_in, tokens_out in readings:
        count = int(rng.poisson(rate * step_s))
        lengths = max(round(tokens_in), 1), max(round(tokens_out), 1)
        rows += [(float(t), *lengths) for t in np.sort(at + rng.random(count) * step_s)]
    return rows
