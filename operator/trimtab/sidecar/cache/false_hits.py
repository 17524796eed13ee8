"""How often a similar prompt has another answer: figures from labelled pairs, and a bound that grows with evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

Z95 = 1.96
"""Two-sided 95 % of the normal distribution."""
MIN_CHECKS = 20
"""Checks before anything is concluded from them."""


def wilson(wrong: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Score interval (Wilson 1927) for the share of wrong ones; (0, 1) without evidence."""
    if total == 0:
        return 0.0, 1.0
    share = wrong / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two prompts as the tier sees them: `comparable` is False when their fingerprints keep them apart."""

    similarity: float
    same: bool  # one answer is right for both
    comparable: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a threshold does to a set of pairs."""

    threshold: float
    hits: int
    false_hits: int
    paraphrases: int
    different: int

    @property
    def hit_rate(self) -> float:
        """Share of paraphrases that are answered from the cache."""
        return (self.hits - self.false_hits) / self.paraphrases if self.paraphrases else 0.0

    @property
    def false_share(self) -> float:
        """Share of hits that are wrong."""
        return self.false_hits / self.hits if self.hits else 0.0

    @property
    def false_bound(self) -> float:
        """Upper 95 % bound of `false_share`; 1 without hits."""
        return wilson(self.false_hits, self.hits)[1]


def judge(pairs: Sequence[Pair], threshold: float, *, guarded: bool = True) -> Outcome:
    """The outcome of a threshold, with the fingerprints (`guarded`) or as if there were none."""
    hits = [pair for pair in pairs if pair.similarity >= threshold and (pair.comparable or not guarded)]
    return Outcome(
        threshold,
        len(hits),
        sum(not pair.same for pair in hits),
        sum(pair.same for pair in pairs),
        sum(not pair.same for pair in pairs),
    )


def lowest_safe_threshold(pairs: Sequence[Pair], bound: float, *, guarded: bool = True) -> Outcome | None:
    """The threshold with most hits whose upper bound on false hits keeps `bound`; None when no threshold does."""
    best: Outcome | None = None
    for threshold in sorted({pair.similarity for pair in pairs}):
        outcome = judge(pairs, threshold, guarded=guarded)
        if outcome.false_bound <= bound and (best is None or outcome.hits > best.hits):
            best = outcome
    return best


class Verification:
    """Watches hits that were checked against the engine's own answer, and stops the tier when too many were wrong."""

    def __init__(self, bound: float) -> None:
        """`bound`: share of wrong hits that may not be exceeded with 95 % confidence."""
        self._bound = bound
        self.agreed = 0
        self.disagreed = 0

    def record(self, agreed: bool) -> None:
        """One checked hit."""
        if agreed:
            self.agreed += 1
        else:
            self.disagreed += 1

    @property
    def checks(self) -> int:
        """How many hits were checked."""
        return self.agreed + self.disagreed

    @property
    def suspended(self) -> bool:
        """Whether the evidence says that more hits are wrong than allowed."""
        return self.checks >= MIN_CHECKS and wilson(self.disagreed, self.checks)[0] > self._bound

    @property
    def upper_bound(self) -> float:
        """95 % upper bound of the share of wrong hits; 1 without evidence."""
        return wilson(self.disagreed, self.checks)[1]
