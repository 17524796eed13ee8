import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.telemetry.histogram import quantile

INF = math.inf


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        pytest.param([(1, 0), (2, 10), (INF, 10)], 0.5, 1.5, id="linear within a bucket"),
        pytest.param([(1, 10), (INF, 10)], 0.5, 0.5, id="the first bucket begins at zero"),
        pytest.param([(1, 0), (2, 0), (INF, 10)], 0.5, 2.0, id="beyond the last bound"),
        pytest.param([(INF, 10), (2, 10), (1, 5)], 0.75, 1.5, id="any order"),
        pytest.param([(1, 0), (INF, 0)], 0.5, None, id="nothing observed"),
        pytest.param([], 0.5, None, id="no buckets"),
        pytest.param([(1, 3), (2, 4)], 0.5, None, id="without +Inf the total is unknown"),
        pytest.param([(1, 5), (2, 4.999), (4, 10), (INF, 10)], 0.9, 3.6, id="rates that fall by a rounding error"),
    ],
)
def test_quantile(buckets: list[tuple[float, float]], share: float, expected: float | None) -> None:
    assert quantile(buckets, share) == (None if expected is None else pytest.approx(expected))


@given(
    counts=st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(lambda c: sum(c) > 0),
    shares=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
)
def test_quantiles_ascend_and_stay_within_the_bounds(counts: list[int], shares: tuple[float, float]) -> None:
    bounds = [*(float(i + 1) for i in range(len(counts) - 1)), INF]
    buckets = [(bound, float(sum(counts[: i + 1]))) for i, bound in enumerate(bounds)]
    low, high = (quantile(buckets, share) for share in sorted(shares))
    assert low is not None
    assert high is not None
    assert 0 <= low <= high <= len(counts) - 1
