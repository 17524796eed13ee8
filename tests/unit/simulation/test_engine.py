from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trimtab.catalog.steptime import step_time_model
from trimtab.simulation.engine import Engine
from trimtab.simulation.prompts import Prompt
from trimtab.simulation.settings import Settings


def drain(engine, now=0.0, steps=100_000):
    """Run until idle; returns (time, steps)."""
    taken = []
    for _ in range(steps):
        step = engine.step(now)
        if step is None:
            ready = engine.next_ready()
            if ready is None:
                return now, taken
            now = ready
            continue
        taken.append(step)
        now += step.duration_s
    raise AssertionError("the engine never becomes idle")


def submit(engine, number, tokens, new, at=0.0, **more):
    return engine.submit(at, Prompt.whole(number, tokens), new, **more)


def test_an_idle_engine_has_nothing_to_do(settings, times):
    engine = Engine(settings, times)
    assert engine.step(0.0) is None
    assert engine.next_ready() is None


def test_one_request_takes_a_prefill_and_a_decode_pass_per_further_token(settings, times):
    engine = Engine(settings, times)
    entry = submit(engine, 1, 500, 20)
    end, steps = drain(engine)
    assert [step.method for step in steps] == ["prefill"] + ["decode"] * 19
    prefill = times.step_ms(0, 0, 500, 500.0**2, 1) / 1000
    assert entry.first_token_at == pytest.approx(entry.queued_at + prefill)
    decode = sum(times.decode_ms(1, 500 + i) for i in range(19)) / 1000
    assert entry.last_token_at == pytest.approx(entry.first_token_at + decode)
    assert (entry.generated, entry.finish_reason) == (20, "length")
    assert end == entry.last_token_at


def test_the_model_may_end_its_answer_early(settings, times):
    engine = Engine(settings, times)
    entry = submit(engine, 1, 100, 200, stop_after=7)
    drain(engine)
    assert (entry.generated, entry.finish_reason) == (7, "eos_token")


def test_permits_bound_queued_and_running_requests(settings, times):
    engine = Engine(replace(settings, max_concurrent_requests=2), times)
    assert engine.try_permit()
    assert engine.try_permit()
    assert not engine.try_permit()
    engine.release_permit()
    assert engine.try_permit()


def test_tokenizers_take_turns_even_when_one_is_busy(settings, times):
    engine = Engine(settings, times)
    long, short, third = submit(engine, 1, 4000, 1), submit(engine, 2, 10, 1), submit(engine, 3, 10, 1)
    assert short.queued_at < long.queued_at < third.queued_at, "the third waits for the first one's tokenizer"


def test_a_long_prompt_is_computed_in_chunks_while_others_decode(settings, times):
    engine = Engine(settings, times)
    submit(engine, 1, 100, 50)
    engine.step(0.01)
    long = submit(engine, 2, 3000, 5, at=0.1)
    now, methods = 0.2, []
    while long.first_token_at is None:
        step = engine.step(now)
        methods.append((step.method, step.concat, len(step.first)))
        now += step.duration_s
    # 1,023 tokens beside one decoding request, then 1,023 and the last 954.
    assert methods == [("prefill", "chunking", 0), ("decode", None, 0), ("decode", None, 1)]
    assert long.computed == 3000


def test_the_prefill_budget_bounds_what_joins_in_one_pass(settings, times):
    engine = Engine(settings, times)
    for number in range(5):
        submit(engine, number, 300, 5)
    step = engine.step(1.0)
    assert step.admitted == 4, "three whole prompts and the first chunk of the fourth"
    assert len(step.first) == 3
    assert engine.queued == 1


def test_requests_do_not_overtake_each_other(settings, times):
    engine = Engine(replace(settings, capacity_tokens=5000), times)
    submit(engine, 1, 3000, 500)
    submit(engine, 2, 3000, 100)
    small = submit(engine, 3, 10, 10)
    engine.step(1.0)
    for _ in range(20):
        engine.step(2.0)
    assert engine.running == 1
    assert small.started_at is None, "it would fit, but the one before does not"


def test_the_whole_future_need_is_reserved_and_given_back(settings, times):
    engine = Engine(settings, times)
    entry = submit(engine, 1, 400, 600)
    engine.step(1.0)
    assert engine.reserved_tokens == 1000
    engine.cancel(entry)
    engine.step(2.0)
    assert engine.reserved_tokens == 0
    assert engine.running == 0


def test_with_chunking_the_batch_size_binds_only_the_first_batch(settings, times):
    engine = Engine(replace(settings, max_batch_size=2), times)
    for number in range(6):
        submit(engine, number, 50, 40)
    assert engine.step(1.0).admitted == 2
    assert engine.step(2.0).admitted == 4, "merging ignores max_batch_size"
    assert engine.running == 6


def test_without_chunking_the_batch_size_binds_and_the_batch_stands_still_for_prefills(settings, times):
    engine = Engine(replace(settings, max_batch_size=3, chunking=False), times)
    first = submit(engine, 0, 50, 40)
    engine.step(1.0)
    for number in range(1, 6):
        submit(engine, number, 50, 40, at=1.0)
    tokens = engine.tokens_so_far(first)
    step = engine.step(2.0)
    assert (step.method, step.admitted, step.concat) == ("prefill", 2, "backpressure")
    assert engine.tokens_so_far(first) == tokens
    assert engine.step(3.0).method == "decode"
    assert engine.tokens_so_far(first) == tokens + 1
    assert engine.running == 3


def test_without_chunking_few_waiting_requests_wait_until_the_running_ones_have_had_enough(settings, times):
    engine = Engine(replace(settings, chunking=False, waiting_served_ratio=1.2, max_waiting_tokens=5), times)
    for number in range(4):
        submit(engine, number, 20, 100)
    engine.step(1.0)
    submit(engine, 9, 20, 10, at=1.0)
    joined = [engine.step(2.0 + i).concat for i in range(6)]
    assert joined == [None, None, None, None, "wait_exceeded", None]


def test_a_decode_pass_costs_as_much_as_the_next_captured_batch(settings, times):
    assert [settings.padded(batch) for batch in (1, 3, 9, 17, 33)] == [1, 4, 16, 32, 33]
    assert replace(settings, cuda_graphs=()).padded(3) == 3


def test_long_answers_are_continued_in_chunks_and_overshoot(times):
    settings = Settings(
        max_input_tokens=8191, max_total_tokens=8192, max_batch_prefill_tokens=4096, capacity_tokens=100_000
    )
    engine = Engine(settings, times)
    entry = submit(engine, 1, 100, 1500)
    _, steps = drain(engine)
    assert entry.generated == 2048, "each chunk may again have min(max_new_tokens, 1024) tokens"
    assert entry.finish_reason == "length"
    assert sum(len(step.continued) for step in steps) == 1
    assert sum(step.method == "prefill" for step in steps) == 2


def test_a_continuation_that_no_longer_fits_is_an_error(settings, times):
    engine = Engine(replace(settings, max_total_tokens=2000), times)
    entry = submit(engine, 1, 900, 1500)
    drain(engine)
    assert (entry.generated, entry.finish_reason) == (1024, "error")


def test_lengths_are_checked_as_the_router_does(settings, times):
    engine = Engine(settings, times)
    assert engine.refuses(4000, 96) is None
    assert "must be <= 4096. Given: 4000 `inputs` tokens and 97" in engine.refuses(4000, 97)
    short = Engine(replace(settings, max_input_tokens=100), times)
    assert short.refuses(101, 1) == "`inputs` must have less than 100 tokens. Given: 101"


def test_a_repeated_prompt_is_computed_only_once_when_it_comes_after_the_first_ended(settings, times):
    engine = Engine(settings, times)
    first = submit(engine, 7, 1000, 5)
    now, _ = drain(engine)
    again = submit(engine, 7, 1000, 5, at=now)
    drain(engine, now)
    saved = (first.first_token_at - first.started_at) - (again.first_token_at - again.started_at)
    assert saved == pytest.approx((times.prefill_ms([1000]) - times.step_ms(0, 0, 1, 1999.0, 1)) / 1000)
    cold = Engine(replace(settings, prefix_caching=False), times)
    submit(cold, 7, 1000, 5)
    now, _ = drain(cold)
    other = submit(cold, 7, 1000, 5, at=now)
    drain(cold, now)
    assert other.first_token_at - other.started_at == pytest.approx(first.first_token_at - first.started_at)


def test_padded_batches_count_the_longest_prompt_for_everybody(settings, times):
    engine = Engine(replace(settings, paged=False, chunking=False, max_batch_prefill_tokens=1024), times)
    for number, tokens in enumerate((100, 400, 100)):
        submit(engine, number, tokens, 10)
    assert engine.step(1.0).admitted == 2, "three times 400 exceed the budget"


def test_speculation_makes_each_pass_verify_more_tokens(settings, times):
    plain, guessing = Engine(settings, times), Engine(replace(settings, speculate=3, chunking=False), times)
    for engine in (plain, guessing):
        for number in range(40):
            submit(engine, number, 20, 10)
    assert drain(guessing)[0] > drain(plain)[0]


REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 3, allow_nan=False),
        st.integers(1, 3000),
        st.integers(1, 300),
        st.integers(0, 4),
        st.one_of(st.none(), st.integers(1, 200)),
    ),
    min_size=1,
    max_size=25,
)
VARIANTS = st.sampled_from(
    [
        {},
        {"capacity_tokens": 7000},
        {"chunking": False, "max_batch_prefill_tokens": 4096},
        {"chunking": False, "max_batch_prefill_tokens": 4096, "max_batch_size": 3, "waiting_served_ratio": 1.2},
        {"prefix_caching": False, "block_tokens": 16},
        {"block_tokens": 256, "capacity_tokens": 20_000},
    ]
)


def play(engine, arrivals, advance):
    """Feed arrivals to an engine as they come; `advance(engine, now, until)` takes one step."""
    now, entries, finished, waiting = 0.0, [], [], list(arrivals)
    while True:
        while waiting and waiting[0][0] <= now:
            at, tokens, new, key, stop = waiting.pop(0)
            new = min(new, 4096 - tokens)
            entries.append(engine.submit(at, Prompt.whole(key * 10_000 + tokens, tokens), new, stop))
        until = waiting[0][0] if waiting else float("inf")
        step = advance(engine, now, until)
        if step is not None:
            now += step.duration_s
            finished += [entry.number for entry in step.finished]
            continue
        ready = engine.next_ready()
        soonest = min(until, ready if ready is not None else float("inf"))
        if soonest == float("inf"):
            return entries, finished
        now = max(now, soonest)


@hypothesis_settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, variant=VARIANTS)
def test_jumping_over_decode_passes_changes_nothing(requests, variant):
    times = step_time_model("meta-llama/Llama-3.1-8B-Instruct", "A100-80GB")
    base = Settings(max_input_tokens=4095, max_total_tokens=4096, max_batch_prefill_tokens=1024, capacity_tokens=50_000)
    arrivals = sorted(requests, key=lambda request: request[0])
    one, many = Engine(replace(base, **variant), times), Engine(replace(base, **variant), times)
    slow, slow_order = play(one, arrivals, lambda engine, now, until: engine.step(now))
    fast, fast_order = play(many, arrivals, lambda engine, now, until: engine.fast_forward(now, until))
    assert fast_order == slow_order
    assert one.passes == many.passes
    for left, right in zip(slow, fast, strict=True):
        assert (left.generated, left.finish_reason) == (right.generated, right.finish_reason)
        assert left.first_token_at == pytest.approx(right.first_token_at, abs=1e-9)
        assert left.last_token_at == pytest.approx(right.last_token_at, abs=1e-9)
    for engine in (one, many):
        assert engine.running == engine.queued == engine.reserved_tokens == 0
        assert engine.cached_tokens == 0
