"""The simulator and the HTTP server are two shells around one engine: the same trace gives the same times."""

import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from trimtab.catalog.catalogue import load_catalogue
from trimtab.replay.client import Target, replay
from trimtab.replay.trace import Source, from_columns
from trimtab.simulation.command import parse_command
from trimtab.simulation.fleet import Fleet, FleetSettings
from trimtab.simulation.launch import launch
from trimtab.simulation.policy import Static
from trimtab.simulation.server.app import make_app
from trimtab.simulation.workload import from_trace

FLAGS = "--model-id meta-llama/Llama-3.1-8B-Instruct --max-total-tokens 4096 --max-input-tokens 3000"
RELATIVE = 0.10
LONGEST_PROMPT = 400
"""Bound: a tenth, for the time of client and event loop on a busy machine; for the time to the first token also one
pass, because a request that arrives a moment later can miss the pass that it joined in the simulation."""


@pytest.fixture
def trace():
    rng = np.random.default_rng(7)
    count = 60
    times = np.cumsum(rng.exponential(0.1, count))
    inputs, outputs = rng.integers(20, LONGEST_PROMPT, count), rng.integers(10, 60, count)
    return from_columns("short", times, inputs, outputs, Source("memory", "test"))


@pytest.mark.parametrize(
    ("gpu", "flags"),
    [
        pytest.param("L4", "--max-batch-prefill-tokens 512", id="chunked prompts on a slow GPU"),
        pytest.param("A100-80GB", "--max-batch-prefill-tokens 4096 --speculate 1", id="whole prompts on a fast one"),
    ],
)
async def test_simulator_and_server_agree_on_the_same_trace(trace, gpu, flags):
    arguments = parse_command([*FLAGS.split(), *flags.split()], {})
    model = load_catalogue().model("meta-llama/Llama-3.1-8B-Instruct")
    launched = launch(arguments, {}, model, load_catalogue().gpu(gpu))
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
    for seen, expected, slack in ((ttft, simulated.ttft_s, one_pass), (tpot, simulated.tpot_s, 0.0)):
        for percentile in (50, 95):
            value, wanted = np.percentile(seen, percentile), np.percentile(expected, percentile)
            assert abs(value - wanted) <= RELATIVE * wanted + slack, (percentile, value, wanted)
