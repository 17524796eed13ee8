"""The simulator and the HTTP server are two shells around one engine: the same trace gives the same times."""

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from trimtab.catalog.catalogue import load_catalogue
from trimtab.replay.client import Target, replay
from trimtab.replay.trace import Source, from_columns, head, speed_up
from trimtab.simulation.command import parse_command
from trimtab.simulation.fleet import Fleet, FleetSettings
from trimtab.simulation.launch import launch
from trimtab.simulation.policy import Static
from trimtab.simulation.server.app import make_app
from trimtab.simulation.workload import from_trace

FLAGS = "--model-id meta-llama/Llama-3.1-8B-Instruct --max-total-tokens 4096 --max-input-tokens 3000"
RELATIVE = 0.10
LONGEST_PROMPT, SHORTEST_ANSWER = 400, 20
"""Bound: a tenth, for the time of client and event loop on a busy machine, and one pass, because a request that arrives
a moment later can miss the pass that it joined in the simulation; for time per token that is spread over the answer."""


@pytest.fixture
def trace():
    rng = np.random.default_rng(7)
    count = 60
    times = np.cumsum(rng.exponential(0.1, count))
    inputs, outputs = rng.integers(20, LONGEST_PROMPT, count), rng.integers(SHORTEST_ANSWER, 60, count)
    return from_columns("short", times, inputs, outputs, Source("memory", "test"))


@pytest.mark.parametrize(
    ("slower", "flags"),
    [
        pytest.param(1.0, "--max-batch-prefill-tokens 512", id="chunked prompts under load"),
        # Without chunks a batch stands still for prompts; near saturation a millisecond decides who waits for whom.
        pytest.param(2.0, "--max-batch-prefill-tokens 4096 --speculate 1", id="whole prompts at half the load"),
    ],
)
async def test_simulator_and_server_agree_on_the_same_trace(trace, slower, flags):
    arguments = parse_command([*FLAGS.split(), *flags.split()], {})
    model = load_catalogue().model("meta-llama/Llama-3.1-8B-Instruct")
    launched = launch(arguments, {}, model, load_catalogue().gpu("L4"))
    trace = speed_up(head(trace, int(len(trace) / slower)), 1 / slower)
    simulated = Fleet(FleetSettings(launched.settings, launched.times), from_trace(trace), Static()).run().records
    server = TestServer(make_app(launched, arguments, {}))
    await server.start_server()
    try:
        measured = await replay(trace, Target(str(server.make_url("")), api="tgi"))
    finally:
        await server.close()
    assert set(measured.code) == {"200"}
    assert np.array_equal(measured.tokens, simulated.output_tokens)
    ttft = measured.first_s - measured.scheduled_s
    tpot = (measured.done_s - measured.first_s) / (measured.tokens - 1)
    one_pass = launched.times.step_ms(8, 8 * LONGEST_PROMPT, LONGEST_PROMPT, float(LONGEST_PROMPT**2)) / 1000
    for seen, expected, slack in (
        (ttft, simulated.ttft_s, one_pass),
        (tpot, simulated.tpot_s, one_pass / SHORTEST_ANSWER),
    ):
        for percentile in (50, 95):
            value, wanted = np.percentile(seen, percentile), np.percentile(expected, percentile)
            assert abs(value - wanted) <= RELATIVE * wanted + slack, (percentile, value, wanted)
