"""Quantiles of Prometheus histograms, as PromQL's `histogram_quantile` finds them."""

import math
from collections.abc import Iterable


def quantile(buckets: Iterable[tuple[float, float]], share: float) -> float | None:
    """The value below which a `share` of the observations lies; None without observations.

    `buckets` are (upper bound, cumulative count or rate) in any order. Linear within a bucket; observations above the
    last finite bound count as that bound, so a quantile there is a lower estimate.
    """
    ordered = sorted(buckets)
    if not ordered or not math.isinf(ordered[-1][0]):
        return None
    total = ordered[-1][1]
    if not total > 0:
        return None
    rank = share * total
    bound_before, count_before = 0.0, 0.0
    for bound, count in ordered:
        # Rates of buckets scraped at different moments may fall slightly.
        count = max(count, count_before)
        if count >= rank and count > count_before:
            if math.isinf(bound):
                return bound_before
            return bound_before + (bound - bound_before) * (rank - count_before) / (count - count_before)
        bound_before, count_before = (bound_before if math.isinf(bound) else bound), count
    return bound_before
