"""What became of each request of a simulation, and of the replicas that served them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Outcome(IntEnum):
    """How a request ended."""

    OPEN = 0
    """Not yet ended when the simulation did."""
    SERVED = 1
    HIT = 2
    """Answered from the cache."""
    SHARED = 3
    """Answered together with an equal request that was under way."""
    REJECTED = 4
    """Refused: the sidecar's queue was full, or the engine's permits were used up."""
    TIMED_OUT = 5
    """Gave up waiting in the sidecar's queue."""
    REFUSED = 6
    """Too long for the engine."""
    UNAVAILABLE = 7
    """No replica was ready."""
    BROKEN = 8
    """The replica was stopped, or the engine could not continue the answer."""


ANSWERED = (Outcome.SERVED, Outcome.HIT, Outcome.SHARED)


@dataclass(frozen=True, slots=True)
class Records:
    """One entry a request in arrays; times are seconds from the start, NaN where there is none."""

    arrival_s: Floats
    sent_s: Floats
    """When the engine got it."""
    first_s: Floats
    """First token."""
    end_s: Floats
    """Last token, or when it was refused."""
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    """Tokens of the answer."""
    outcome: NDArray[np.int64]
    replica: NDArray[np.int64]
    """Number of the replica; -1: none."""

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests got a whole answer."""
        return np.isin(self.outcome, ANSWERED)

    @property
    def ttft_s(self) -> Floats:
        """Time to first token."""
        return np.asarray(self.first_s - self.arrival_s, dtype=np.float64)

    @property
    def latency_s(self) -> Floats:
        """Time to last token."""
        return np.asarray(self.end_s - self.arrival_s, dtype=np.float64)

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; NaN for answers of one token."""
        steps = np.where(self.output_tokens > 1, self.output_tokens - 1, 1)
        times = (self.end_s - self.first_s) / steps
        return np.asarray(np.where(self.output_tokens > 1, times, np.nan), dtype=np.float64)

    def count(self, *outcomes: Outcome) -> int:
        """Requests that ended in one of these ways."""
        return int(np.isin(self.outcome, outcomes).sum())

    def percentiles(self, values: Floats, wanted: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
        """Percentiles of answered requests; NaN when there are none."""
        known = values[self.answered]
        known = known[~np.isnan(known)]
        if not len(known):
            return tuple(float("nan") for _ in wanted)
        return tuple(float(value) for value in np.percentile(known, list(wanted)))


@dataclass(frozen=True, slots=True)
class ReplicaSpan:
    """How long a replica held its GPUs."""

    number: int
    created_s: float
    ready_s: float
    gone_s: float
    """The end of the simulation when it was still there."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that the policy changed."""

    time: float
    what: str
    """`replicas` or `limit`."""
    before: int | None
    after: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Result:
    """A whole simulation."""

    records: Records
    spans: tuple[ReplicaSpan, ...]
    changes: tuple[Change, ...]
    end_s: float
    passes: int
    """Forward passes of all engines."""

    @property
    def replica_hours(self) -> float:
        """Time that replicas held their GPUs, booting and draining included."""
        return sum(span.gone_s - span.created_s for span in self.spans) / 3600.0
