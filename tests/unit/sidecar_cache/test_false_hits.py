import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.false_hits import Pair, Verification, judge, lowest_safe_threshold, wilson


def test_the_interval_is_wilsons() -> None:
    # Brown, Cai and DasGupta (2001), Interval Estimation for a Binomial Proportion: x = 0, n = 10 gives [0, 0.2775].
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(total=st.integers(1, 10_000), data=st.data())
def test_the_interval_holds_the_share(total: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, total))
    low, high = wilson(wrong, total)
    assert 0 <= low <= wrong / total <= high <= 1


PAIRS = [
    Pair(0.99, same=True, comparable=True),
    Pair(0.97, same=False, comparable=False),
    Pair(0.95, same=True, comparable=True),
    Pair(0.90, same=False, comparable=True),
    Pair(0.80, same=True, comparable=False),
]


def test_a_threshold_is_judged_with_and_without_the_guard() -> None:
    guarded = judge(PAIRS, 0.9)
    assert (guarded.hits, guarded.false_hits) == (3, 1)
    assert guarded.hit_rate == pytest.approx(2 / 3)
    assert guarded.false_share == pytest.approx(1 / 3)
    assert judge(PAIRS, 0.96, guarded=False).false_hits == 1
    assert judge(PAIRS, 0.96).false_hits == 0
    assert judge(PAIRS, 1.0).false_bound == 1.0


def test_the_lowest_safe_threshold_has_evidence_for_its_bound() -> None:
    many = [Pair(0.9 + n / 10_000, same=True, comparable=True) for n in range(500)]
    wrong = [Pair(0.85, same=False, comparable=True)] * 50
    found = lowest_safe_threshold([*many, *wrong], 0.02)
    assert found is not None and found.threshold == 0.9 and found.false_bound <= 0.02
    assert lowest_safe_threshold(PAIRS, 0.02) is None  # five pairs prove nothing


def test_serving_stops_only_when_the_checks_prove_too_many_wrong() -> None:
    watch = Verification(0.02)
    assert not watch.suspended and watch.upper_bound == 1.0
    watch.record(False)
    for _ in range(18):
        watch.record(False)
    assert not watch.suspended  # too few checks to conclude anything
    watch = Verification(0.02)
    watch.record(False)
    for _ in range(20):
        watch.record(True)
    assert not watch.suspended
    for _ in range(5):
        watch.record(False)
    assert watch.suspended
    assert (watch.agreed, watch.disagreed) == (20, 6)
