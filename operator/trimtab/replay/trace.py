"""A request trace as arrays, and the transformations that keep what matters about it."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Origin = Literal["folder", "download", "generated", "path", "memory"]

# Reuse of prompts is recent: 80 % of reuses of a consumer service come within ten minutes
# (KVCache Cache in the Wild, arXiv 2506.02634).
REPEAT_WINDOW_SECONDS = 600.0
RATE_BIN_SECONDS = 60.0
ARRIVALS_PER_BIN = 10.0
PREFIX_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Source:
    """Where a trace comes from; `detail` is a path, an address or the profile's sources."""

    origin: Origin
    detail: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival.

    All arrays have one entry a request: `arrival_s` seconds from the start of the trace (ascending),
    `input_tokens`, `output_tokens`, and `prompt_key`: equal keys mean byte-equal prompts. `prefix_blocks`, where
    the trace has them, names the 512-token blocks of each prompt; equal leading ids mean a shared prefix.
    `span_s` is the time that the trace covers (at least the last arrival).
    """

    name: str
    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    prompt_key: Ints
    span_s: float
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None
    source: Source = field(default_factory=lambda: Source("memory", ""))

    def __post_init__(self) -> None:
        lengths = {len(self.arrival_s), len(self.input_tokens), len(self.output_tokens), len(self.prompt_key)}
        if self.prefix_blocks is not None:
            lengths.add(len(self.prefix_blocks))
        if len(lengths) != 1:
            raise ValueError(f"trace {self.name}: columns of different length {sorted(lengths)}")
        if len(self.arrival_s) and bool(np.any(np.diff(self.arrival_s) < 0)):
            raise ValueError(f"trace {self.name}: arrivals are not in ascending order")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def mean_rate(self) -> float:
        """Requests/s over the span."""
        return len(self) / self.span_s if self.span_s > 0 else 0.0

    def take(self, index: Ints, arrival_s: Floats, span_s: float) -> "Trace":
        """The requests `index` (may repeat) at new arrival times, which must ascend."""
        blocks = self.prefix_blocks
        return replace(
            self,
            arrival_s=arrival_s,
            input_tokens=self.input_tokens[index],
            output_tokens=self.output_tokens[index],
            prompt_key=self.prompt_key[index],
            prefix_blocks=None if blocks is None else tuple(blocks[i] for i in index.tolist()),
            span_s=span_s,
        )


def from_columns(
    name: str, arrival_s: Floats, input_tokens: Ints, output_tokens: Ints, source: Source, span_s: float | None = None
) -> Trace:
    """A trace without prompt identity: every prompt is distinct. Sorts by arrival and starts the clock at 0."""
    order = np.argsort(arrival_s, kind="stable")
    times = arrival_s[order].astype(np.float64)
    last = float(times[-1]) if len(times) else 0.0
    return Trace(
        name=name,
        arrival_s=times,
        input_tokens=np.maximum(input_tokens[order].astype(np.int64), 1),
        output_tokens=np.maximum(output_tokens[order].astype(np.int64), 1),
        prompt_key=np.arange(len(times), dtype=np.int64),
        span_s=last if span_s is None else span_s,
        source=source,
    )


def window(trace: Trace, start_s: float, duration_s: float | None = None) -> Trace:
    """The requests of [start, start + duration), with the clock set to 0 at `start`."""
    end = trace.span_s if duration_s is None else min(start_s + duration_s, trace.span_s)
    if start_s < 0 or end <= start_s:
        raise ValueError(f"window from {start_s} s to {end} s is empty: trace {trace.name} covers {trace.span_s:.0f} s")
    last = np.searchsorted(trace.arrival_s, end, side="right" if end >= trace.span_s else "left")
    index = np.arange(np.searchsorted(trace.arrival_s, start_s, side="left"), last, dtype=np.int64)
    return trace.take(index, trace.arrival_s[index] - start_s, end - start_s)


def speed_up(trace: Trace, factor: float) -> Trace:
    """Play the trace `factor` times faster: the rate grows, the span shrinks."""
    if factor <= 0:
        raise ValueError(f"speed-up must be positive, got {factor}")
    return replace(trace, arrival_s=trace.arrival_s / factor, span_s=trace.span_s / factor)


def rescale(trace: Trace, factor: float, seed: int = 0, bin_s: float = RATE_BIN_SECONDS) -> Trace:
    """Multiply the rate by `factor` over the same span, keeping the shape of the load.

    Down: an exact count of requests is drawn without replacement, so the rate relative to its mean stays the same
    at every time scale (and Poisson stays Poisson). Up: adding copies at random would smooth a bursty trace; instead
    the trace is split into its rate profile (`bin_s` bins, wider when they would hold few arrivals) and the
    arrivals in operational time (the profile's integral, unit rate), whose gaps carry the burstiness. The profile
    is multiplied by `factor` and the operational arrivals are repeated, unchanged, to fill it. Lengths and prompts
    come from the requests of the same rank in the trace, so the load in tokens keeps its shape too; a request that
    is used more than once gets a prompt of its own each time.
    """
    if factor <= 0:
        raise ValueError(f"rate factor must be positive, got {factor}")
    count = len(trace)
    if count < 2 or factor == 1.0:
        return trace
    if factor < 1:
        rng = np.random.default_rng(seed)
        index = np.sort(rng.choice(count, size=max(round(factor * count), 1), replace=False)).astype(np.int64)
        return trace.take(index, trace.arrival_s[index], trace.span_s)
    arrivals = _stretch_up(trace, factor, bin_s)
    donors = np.minimum((np.arange(len(arrivals)) + 0.5) / factor, count - 1).astype(np.int64)
    return _own_prompts(trace, trace.take(donors, arrivals, trace.span_s), donors)


def _stretch_up(trace: Trace, factor: float, bin_s: float) -> Floats:
    count = len(trace)
    width = max(bin_s, ARRIVALS_PER_BIN / trace.mean_rate)
    edges = np.append(np.arange(0.0, trace.span_s, width), trace.span_s)
    if edges[-1] - edges[-2] < 0.5 * width and len(edges) > 2:
        edges = np.delete(edges, -2)
    counts, _ = np.histogram(trace.arrival_s, edges)
    cumulative = np.concatenate(([0.0], np.cumsum(counts, dtype=np.float64)))
    operational = np.interp(trace.arrival_s, edges, cumulative)
    repeats = int(np.ceil(factor)) + 1
    tiled = (operational[None, :] + count * np.arange(repeats)[:, None]).ravel()
    chosen = tiled[: max(round(factor * count), 1)]
    # Flat stretches of the profile hold no arrivals; only rising points can be inverted.
    rising = np.concatenate(([True], np.diff(cumulative) > 0))
    keep = rising | np.concatenate((rising[1:], [False]))
    arrivals = _invert(np.minimum(chosen / factor, cumulative[-1]), cumulative[keep], edges[keep])
    return np.maximum.accumulate(arrivals)


def _own_prompts(original: Trace, copied: Trace, donors: Ints) -> Trace:
    """Give the n-th use of a request its own prompt (and prefix blocks), so that copying adds no repeats."""
    first_use = np.concatenate(([True], np.diff(donors) > 0))
    copy = np.arange(len(donors)) - np.maximum.accumulate(np.where(first_use, np.arange(len(donors)), 0))
    keys = copied.prompt_key + copy * (int(original.prompt_key.max()) + 1)
    blocks = copied.prefix_blocks
    if blocks is not None:
        step = 1 + max((max(ids) for ids in blocks if ids), default=0)
        blocks = tuple(tuple(b + int(c) * step for b in ids) for ids, c in zip(blocks, copy, strict=True))
    return replace(copied, prompt_key=keys.astype(np.int64), prefix_blocks=blocks)


def _invert(level: Floats, cumulative: Floats, edges: Floats) -> Floats:
    """Time at which a piecewise linear, non-decreasing profile reaches `level`; jumps over flat stretches."""
    right = np.clip(np.searchsorted(cumulative, level, side="right"), 1, len(cumulative) - 1)
    left = right - 1
    rise = cumulative[right] - cumulative[left]
    share = np.where(rise > 0, (level - cumulative[left]) / np.where(rise > 0, rise, 1.0), 0.0)
    return np.asarray(edges[left] + np.clip(share, 0.0, 1.0) * (edges[right] - edges[left]), dtype=np.float64)


def with_rate(trace: Trace, requests_per_second: float, seed: int = 0) -> Trace:
    """Rescale to a mean rate."""
    if trace.mean_rate <= 0:
        raise ValueError(f"trace {trace.name} is empty: its rate cannot be rescaled")
    return rescale(trace, requests_per_second / trace.mean_rate, seed)


def with_repeats(trace: Trace, ratio: float, seed: int = 0) -> Trace:
    """Make a share `ratio` of the requests exact repeats of an earlier one.

    A repeat takes the prompt and both lengths of a request drawn evenly from those of the last ten minutes, so
    prompts that were repeated are likelier to be repeated again, as in real logs. The first request is never one.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"repeat ratio must be in [0, 1), got {ratio}")
    if ratio == 0 or len(trace) < 2:
        return trace
    rng = np.random.default_rng(seed)
    chosen = rng.random(len(trace)) < ratio
    draw = rng.random(len(trace))
    first = np.searchsorted(trace.arrival_s, trace.arrival_s - REPEAT_WINDOW_SECONDS, side="left")
    origin = np.arange(len(trace), dtype=np.int64)
    for i in np.flatnonzero(chosen).tolist():
        low = int(min(first[i], i - 1)) if i else 0
        if i:
            origin[i] = origin[low + int(draw[i] * (i - low))]
    return trace.take(origin, trace.arrival_s, trace.span_s)


def with_lengths(trace: Trace, input_tokens: Ints, output_tokens: Ints, seed: int = 0) -> Trace:
    """Replace the lengths by pairs drawn from a distribution; equal prompts keep equal lengths."""
    rng = np.random.default_rng(seed)
    _, identity = np.unique(trace.prompt_key, return_inverse=True)
    drawn = rng.integers(0, len(input_tokens), int(identity.max(initial=-1)) + 1)[identity]
    return replace(trace, input_tokens=input_tokens[drawn], output_tokens=output_tokens[drawn], prefix_blocks=None)


def with_jitter(trace: Trace, width_s: float, seed: int = 0) -> Trace:
    """Spread arrivals evenly over [t, t + width): for traces whose times were rounded down to a grid."""
    rng = np.random.default_rng(seed)
    times = trace.arrival_s + rng.random(len(trace)) * width_s
    order = np.argsort(times, kind="stable").astype(np.int64)
    return trace.take(order, times[order], max(trace.span_s, float(times.max(initial=0.0))))


def head(trace: Trace, count: int) -> Trace:
    """At most the first `count` requests."""
    if len(trace) <= count:
        return trace
    index = np.arange(count, dtype=np.int64)
    return trace.take(index, trace.arrival_s[index], float(trace.arrival_s[count]))
