import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.replay.statistics import measure
from trimtab.replay.trace import (
    Source,
    Trace,
    from_columns,
    head,
    rescale,
    speed_up,
    window,
    with_jitter,
    with_lengths,
    with_rate,
    with_repeats,
)


def poisson(rate: float, span: float, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.random(int(rate * span)) * span)
    lengths = rng.integers(1, 1000, len(times))
    return from_columns("poisson", times, lengths, lengths[::-1], Source("memory", ""), span_s=span)


def on_off(rate: float, span: float) -> Trace:
    """Bursts of ten seconds every minute."""
    base = poisson(rate, span)
    times = np.sort(np.floor(base.arrival_s / 60) * 60 + (base.arrival_s % 60) / 6)
    return from_columns("bursts", times, base.input_tokens, base.output_tokens, Source("memory", ""), span_s=span)


def test_columns_of_different_length_are_refused() -> None:
    one, two = np.array([1]), np.array([1, 2])
    with pytest.raises(ValueError, match="different length"):
        Trace("x", np.array([0.0]), two, one, one, 1.0)


def test_arrivals_out_of_order_are_refused() -> None:
    two = np.array([1, 2])
    with pytest.raises(ValueError, match="ascending"):
        Trace("x", np.array([1.0, 0.0]), two, two, two, 1.0)


def test_from_columns_sorts_by_arrival_and_keeps_the_rows_together() -> None:
    trace = from_columns("x", np.array([3.0, 1.0]), np.array([30, 10]), np.array([0, 7]), Source("memory", ""))
    assert trace.arrival_s.tolist() == [1.0, 3.0]
    assert trace.input_tokens.tolist() == [10, 30]
    assert trace.output_tokens.tolist() == [7, 1], "an answer has at least one token"


def test_a_window_starts_its_clock_at_zero_and_leaves_out_its_end() -> None:
    trace = from_columns("x", np.arange(10.0), np.arange(10), np.arange(10), Source("memory", ""), span_s=10)
    part = window(trace, 2, 3)
    assert part.arrival_s.tolist() == [0, 1, 2]
    assert part.input_tokens.tolist() == [2, 3, 4]
    assert part.span_s == 3
    with pytest.raises(ValueError, match="empty"):
        window(trace, 20)


def test_speeding_up_keeps_every_request_and_multiplies_the_rate() -> None:
    trace = poisson(5, 600)
    fast = speed_up(trace, 4)
    assert len(fast) == len(trace)
    assert fast.mean_rate == pytest.approx(4 * trace.mean_rate)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.05, 8), seed=st.integers(0, 5))
def test_rescaling_gives_the_wanted_rate_in_order_and_within_the_span(factor: float, seed: int) -> None:
    trace = on_off(4, 900)
    scaled = rescale(trace, factor, seed)
    assert scaled.mean_rate == pytest.approx(factor * trace.mean_rate, rel=0.02)
    assert scaled.span_s == trace.span_s
    assert scaled.arrival_s[0] >= 0
    assert scaled.arrival_s[-1] <= trace.span_s
    assert len(np.unique(scaled.prompt_key)) == len(scaled), "copies have prompts of their own"


@pytest.mark.parametrize("factor", [0.2, 0.5, 3.0])
def test_rescaling_poisson_arrivals_leaves_them_poisson(factor: float) -> None:
    before, after = (measure(t) for t in (poisson(6, 3600), rescale(poisson(6, 3600), factor)))
    assert after.cv == pytest.approx(before.cv, abs=0.08)


@pytest.mark.parametrize("factor", [0.25, 2.5])
def test_rescaling_keeps_the_shape_of_bursts(factor: float) -> None:
    trace = on_off(8, 3600)
    scaled = rescale(trace, factor)
    seconds = np.arange(0, 3601.0)
    before, after = (np.histogram(t.arrival_s, seconds)[0] for t in (trace, scaled))
    assert (after == 0).mean() == pytest.approx((before == 0).mean(), abs=0.08), "as much quiet between bursts"
    assert after.max() / after.mean() > 0.7 * before.max() / before.mean()
    assert measure(scaled).peak_to_mean == pytest.approx(measure(trace).peak_to_mean, rel=0.15)


def test_rescaling_up_keeps_the_share_of_repeats() -> None:
    trace = with_repeats(poisson(5, 1200), 0.3, seed=1)
    up = rescale(trace, 2.6)
    assert measure(up).repeat_ratio == pytest.approx(measure(trace).repeat_ratio, abs=0.05)


def test_rescaling_to_a_rate_of_an_empty_trace_is_refused() -> None:
    empty = from_columns("x", np.empty(0), np.empty(0), np.empty(0), Source("memory", ""), span_s=5)
    with pytest.raises(ValueError, match="empty"):
        with_rate(empty, 3)


@settings(max_examples=20, deadline=None)
@given(ratio=st.floats(0, 0.9), seed=st.integers(0, 10))
def test_repeats_make_up_the_wanted_share_and_copy_prompt_and_lengths(ratio: float, seed: int) -> None:
    trace = poisson(5, 600)
    repeated = with_repeats(trace, ratio, seed)
    assert measure(repeated).repeat_ratio == pytest.approx(ratio, abs=0.05)
    assert repeated.arrival_s.tolist() == trace.arrival_s.tolist()
    by_prompt: dict[int, tuple[int, int]] = {}
    columns = (repeated.prompt_key.tolist(), repeated.input_tokens.tolist(), repeated.output_tokens.tolist())
    for key, tokens_in, tokens_out in zip(*columns, strict=True):
        assert by_prompt.setdefault(key, (tokens_in, tokens_out)) == (tokens_in, tokens_out)


def test_transformations_are_reproducible_by_seed() -> None:
    trace = poisson(5, 600)
    first, again, other = (with_repeats(rescale(trace, 0.5, s), 0.3, s) for s in (7, 7, 8))
    assert first.prompt_key.tolist() == again.prompt_key.tolist()
    assert first.prompt_key.tolist() != other.prompt_key.tolist()


def test_jitter_moves_arrivals_by_less_than_its_width_and_keeps_order() -> None:
    trace = from_columns("x", np.repeat(np.arange(0, 300, 3.0), 3), np.ones(300), np.ones(300), Source("memory", ""))
    moved = with_jitter(trace, 3.0, seed=2)
    assert bool(np.all(np.diff(moved.arrival_s) >= 0))
    assert bool(np.all(np.sort(moved.prompt_key) == trace.prompt_key))
    assert float((moved.arrival_s - trace.arrival_s[moved.prompt_key]).min()) >= 0
    assert float((moved.arrival_s - trace.arrival_s[moved.prompt_key]).max()) < 3


def test_lengths_from_a_distribution_come_in_its_pairs() -> None:
    trace = with_repeats(poisson(5, 100), 0.4)
    drawn = with_lengths(trace, np.array([10, 20]), np.array([1, 2]), seed=3)
    pairs = set(zip(drawn.input_tokens.tolist(), drawn.output_tokens.tolist(), strict=True))
    assert pairs == {(10, 1), (20, 2)}


def test_head_ends_the_span_where_it_cuts() -> None:
    trace = from_columns("x", np.arange(10.0), np.ones(10), np.ones(10), Source("memory", ""), span_s=10)
    assert len(head(trace, 4)) == 4
    assert head(trace, 4).span_s == 4
    assert head(trace, 40) is trace
