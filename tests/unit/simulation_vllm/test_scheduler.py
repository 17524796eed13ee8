from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.simulation.vllm.scheduler import Scheduler, VllmSettings


def play(scheduler, now=0.0):
    """All steps until nothing is left, with the time at which each began."""
    while (step := scheduler.step(now)) is not None:
        yield now, step
        now += step.duration_s


def test_a_single_request_is_prefilled_and_decoded(settings, times):
    scheduler = Scheduler(settings, times)
    request = scheduler.submit(0.0, 100, 5)
    steps = [step for _, step in play(scheduler)]
    assert [step.tokens for step in steps] == [100, 1, 1, 1, 1]
    assert request.finish_reason == "length"
    assert request.generated == 5
    assert steps[0].duration_s == pytest.approx(times.prefill_ms([100]) / 1000)
    assert steps[1].duration_s == pytest.approx(times.decode_ms(1, 100, 1) / 1000)
    assert request.first_token_at == steps[0].duration_s
    assert request.last_token_at == pytest.approx(sum(step.duration_s for step in steps))
    assert scheduler.free_blocks == settings.usable_blocks


def test_decodes_come_first_and_prompts_are_cut_to_what_is_left(settings, times):
    scheduler = Scheduler(settings, times)
    first = scheduler.submit(0.0, 10, 50)
    scheduler.step(0.0)
    long = scheduler.submit(0.1, 1200, 2)
    shares = []
    while long.first_token_at is None:
        shares.append(scheduler.step(0.1).tokens)
    assert shares == [512, 512, 1 + 1200 - 2 * 511], "each step has one token for the decoding request"
    assert first.generated == 1 + len(shares), "the running request got a token in every step"


def test_prompts_share_a_step_and_at_most_max_num_seqs_run(settings, times):
    scheduler = Scheduler(replace(settings, max_num_seqs=3), times)
    for _ in range(5):
        scheduler.submit(0.0, 50, 4)
    step = scheduler.step(0.0)
    assert (step.batch, step.tokens, len(scheduler.waiting)) == (3, 150, 2)
    assert max(step.batch for _, step in play(scheduler)) == 3


def test_a_threshold_limits_one_prompts_share(settings, times):
    scheduler = Scheduler(replace(settings, long_prefill_token_threshold=128), times)
    scheduler.submit(0.0, 300, 1)
    assert [step.tokens for _, step in play(scheduler)] == [128, 128, 44]


def test_without_chunks_a_prompt_waits_until_it_fits_whole(settings, times):
    scheduler = Scheduler(replace(settings, chunked_prefill=False), times)
    first, second, third = (scheduler.submit(0.0, tokens, 1) for tokens in (300, 400, 100))
    assert scheduler.step(0.0).emitted == [first, third], "the shorter one overtakes"
    assert scheduler.step(0.0).emitted == [second]


def test_the_latest_gives_way_when_blocks_run_out_and_computes_again(settings, times):
    # Eight usable blocks of 16 tokens: both prompts fit, their answers do not.
    scheduler = Scheduler(replace(settings, num_gpu_blocks=9), times)
    first, second = scheduler.submit(0.0, 60, 40), scheduler.submit(0.0, 60, 40)
    steps = [step for _, step in play(scheduler)]
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert sum(step.preempted for step in steps) == 1
    assert first.generated == second.generated == 40
    assert first.last_token_at < second.last_token_at
    # 60 + 39 tokens are computed for each, and those of the second's prompt and beginning once more.
    again = sum(step.tokens for step in steps) - 2 * 99
    assert 60 <= again <= 100
    assert scheduler.free_blocks == 8


def test_an_aborted_request_frees_its_blocks(settings, times):
    scheduler = Scheduler(replace(settings, max_num_seqs=1), times)
    first, second = scheduler.submit(0.0, 60, 40), scheduler.submit(0.0, 60, 40)
    scheduler.step(0.0)
    assert scheduler.kv_usage > 0
    scheduler.abort(second)
    scheduler.abort(first)
    assert (scheduler.kv_usage, scheduler.step(1.0)) == (0.0, None)
    assert first.finish_reason == second.finish_reason == "abort"


def test_answers_end_at_the_end_of_sequence_or_with_the_context(settings, times):
    scheduler = Scheduler(replace(settings, max_model_len=64), times)
    early, full = scheduler.submit(0.0, 20, 30, stop_after=3), scheduler.submit(0.0, 60, 30)
    assert len(list(play(scheduler))) == 4
    assert (early.finish_reason, early.generated) == ("stop", 3)
    assert (full.finish_reason, full.tokens) == ("length", 64)


requests = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=12)


@given(requests, st.integers(1, 6), st.integers(8, 300), st.integers(18, 60), st.booleans())
def test_everything_ends_and_no_bound_is_broken(times, sizes, sequences, budget, blocks, chunked):
    most = min(256, budget) if not chunked else 256
    settings = VllmSettings(256, sequences, budget, blocks, chunked_prefill=chunked)
    scheduler = Scheduler(settings, times)
    wanted = [
        scheduler.submit(0.0, prompt, answer)
        for prompt, answer in sizes
        if prompt + answer <= min(most, settings.max_model_len)
    ]
    for _, step in play(scheduler):
        assert step.tokens <= budget
        assert len(scheduler.running) <= sequences
        assert step.duration_s > 0
        held = sum(request.blocks for request in (*scheduler.running, *scheduler.waiting))
        assert held + scheduler.free_blocks == settings.usable_blocks
    assert [request.generated for request in wanted] == [request.max_tokens for request in wanted]
    assert scheduler.free_blocks == settings.usable_blocks
