import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from click.testing import CliRunner

from trimtab.cli.replay import command
from trimtab.replay.client import Outcomes, Progress, Target, parse_cache_status, replay
from trimtab.replay.prompts import PromptTexts
from trimtab.replay.report import Objective, build_report, rows
from trimtab.replay.trace import Source, Trace, from_columns

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


def make_trace(*arrivals: float, tokens_in: int = 20, tokens_out: int = 4) -> Trace:
    count = len(arrivals)
    lengths = np.full(count, tokens_in), np.full(count, tokens_out)
    return from_columns("t", np.array(arrivals), *lengths, Source("memory", ""))


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server on the loopback with one handler for every route."""
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def openai_stream(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Status": "trimtab; fwd=miss"})
    await response.prepare(request)
    for _ in range(body["max_tokens"]):
        chunk = {"choices": [{"delta": {"content": "word "}}]}
        # Split where it hurts: inside "data:" and inside the empty line.
        raw = f"data: {json.dumps(chunk)}\n\n".encode()
        await response.write(raw[:3])
        await asyncio.sleep(0.001)
        await response.write(raw[3:-1])
        await asyncio.sleep(0.001)
        await response.write(raw[-1:])
    if body.get("stream_options"):
        usage = {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}
        await response.write(f"data: {json.dumps(usage)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


async def test_a_stream_gives_ttft_tpot_latency_and_the_servers_token_count(serve: Serve) -> None:
    url = await serve(openai_stream)
    trace = make_trace(0.0, 0.02, 0.04)
    outcomes = await replay(trace, Target(url))
    assert outcomes.code == ["200"] * 3
    assert outcomes.tokens.tolist() == [4, 4, 4]
    assert outcomes.hit == [False] * 3
    assert bool(np.all(outcomes.scheduled_s <= outcomes.sent_s))
    assert bool(np.all(outcomes.sent_s < outcomes.first_s))
    assert bool(np.all(outcomes.first_s < outcomes.done_s))


async def test_without_a_usage_record_the_events_are_counted(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(3):
            raw = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
            await response.write(raw[:2])
            await asyncio.sleep(0.005)
            await response.write(raw[2:])
        await response.write(b"data: [DONE]\n\n")
        return response

    outcomes = await replay(make_trace(0.0), Target(await serve(handler)))
    assert outcomes.tokens.tolist() == [3]
    assert outcomes.hit == [None]


async def test_the_native_route_gets_the_wanted_prompt_and_length(serve: Serve) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, await request.json()))
        return web.json_response({"generated_text": "x", "details": {"generated_tokens": 9}})

    outcomes = await replay(make_trace(0.0), Target(await serve(handler), api="tgi", stream=False))
    path, body = seen[0]
    assert path == "/generate"
    assert len(body["inputs"].split()) == 20
    assert body["parameters"]["max_new_tokens"] == 4
    assert outcomes.tokens.tolist() == [9]
    assert np.isnan(outcomes.first_s[0]), "an answer in one piece has no first token"


async def test_errors_are_told_apart(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        kind = json.loads(await request.text())["max_tokens"]
        if kind == 1:
            return web.json_response({"error": "overloaded"}, status=429)
        if kind == 2:
            await asyncio.sleep(5)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'data: {"error": "CUDA out of memory", "error_type": "generation"}\n\n')
        return response

    trace = make_trace(0.0, 0.0, 0.0)
    trace = Trace(trace.name, trace.arrival_s, trace.input_tokens, np.array([1, 2, 3]), trace.prompt_key, 0.0)
    outcomes = await replay(trace, Target(await serve(handler), timeout_s=0.5))
    assert outcomes.code == ["429", "timeout", "stream"]


async def test_a_server_that_is_not_there_is_counted_not_raised() -> None:
    outcomes = await replay(make_trace(0.0, 0.01), Target("http://127.0.0.1:9", timeout_s=2))
    assert outcomes.code == ["connection", "connection"]


async def test_requests_go_out_on_time_however_slow_the_server_is(serve: Serve) -> None:
    """Open loop: the second request does not wait for the first answer."""
    both = asyncio.Event()
    count = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal count
        count += 1
        if count == 2:
            both.set()
        await both.wait()
        return web.json_response({})

    outcomes = await replay(make_trace(0.0, 0.1), Target(await serve(handler), stream=False, timeout_s=20))
    assert outcomes.code == ["200", "200"]


async def test_latency_counts_from_the_scheduled_time_when_the_client_is_late(serve: Serve) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.json_response({})

    trace = make_trace(0.0, 0.0)
    outcomes = await replay(trace, Target(await serve(handler), stream=False, max_outstanding=1))
    report = build_report(trace, outcomes, Objective(latency_s=0.3), "u")
    assert report["latencyMs"]["p99"] >= 390
    assert report["sendLagMs"]["max"] >= 190
    assert report["slo"]["attainment"] == 0.5


async def test_progress_ends_with_everything_finished(serve: Serve) -> None:
    seen: list[Progress] = []
    await replay(make_trace(0.0, 0.01), Target(await serve(openai_stream)), seen.append)
    assert (seen[-1].finished, seen[-1].total, seen[-1].failed) == (2, 2, 0)


@pytest.mark.parametrize(
    ("value", "hit"),
    [
        (None, None),
        ("trimtab; hit", True),
        ('trimtab; hit; ttl=30; key="a"', True),
        ("ExampleCache; fwd=uri-miss; stored", False),
        ("trimtab; fwd=miss; collapsed", False),
        ("trimtab; hit=?0; fwd=bypass", False),
        ("Origin; fwd=miss, Edge; hit", True),
        ("hitless; fwd=miss", False),
    ],
)
def test_cache_status(value: str | None, hit: bool | None) -> None:
    assert parse_cache_status(value) is hit


def outcomes_of(trace: Trace, first: list[float], done: list[float], tokens: list[int], code: list[str]) -> Outcomes:
    outcomes = Outcomes.empty(trace)
    outcomes.sent_s[:] = trace.arrival_s
    outcomes.first_s[:] = first
    outcomes.done_s[:] = done
    outcomes.tokens[:] = tokens
    outcomes.code = code
    outcomes.hit = [True, False, None]
    return outcomes


def test_the_report_counts_failures_against_the_objective_and_one_token_answers_not() -> None:
    trace = make_trace(0.0, 1.0, 2.0)
    nan = float("nan")
    outcomes = outcomes_of(trace, [0.1, 1.2, nan], [0.1, 2.2, nan], [1, 11, 0], ["200", "200", "429"])
    report = build_report(trace, outcomes, Objective(ttft_s=0.5, tpot_s=0.11), "http://x")
    assert report["errors"] == {"429": 1}
    assert report["succeeded"] == 2
    assert report["ttftMs"] == {"p50": 150.0, "p95": 195.0, "p99": 199.0}
    assert report["tpotMs"]["p50"] == 100.0
    assert report["hitRatio"] == 0.5
    assert report["slo"]["attainment"] == pytest.approx(2 / 3, abs=1e-4)
    json.dumps(report)
    shown = dict(rows(report))
    assert shown["Errors"] == "429: 1"
    assert "TTFT ≤ 500 ms" in shown["Within SLO"]


def test_equal_keys_give_equal_prompts_and_equal_blocks_equal_beginnings() -> None:
    trace = Trace(
        "t",
        np.array([0.0, 1.0, 2.0]),
        np.array([1100, 1100, 1100]),
        np.array([1, 1, 1]),
        np.array([0, 0, 1]),
        2.0,
        prefix_blocks=((5, 6, 7), (5, 6, 7), (5, 6, 8)),
    )
    texts = PromptTexts(trace)
    first, same, other = (texts.text(i) for i in range(3))
    assert first == same != other
    assert first.split()[:1024] == other.split()[:1024]
    assert len(first.split()) == 1100


def test_prompts_of_different_keys_part_within_the_first_words() -> None:
    trace = make_trace(*range(500), tokens_in=50)
    texts = PromptTexts(trace)
    heads = {" ".join(texts.text(i).split()[:5]) for i in range(500)}
    assert len(heads) == 500
    assert {len(texts.text(i).split()) for i in range(500)} == {50}


def test_the_command_reports_as_table_and_json_and_fails_when_nothing_succeeded(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("t_s,in_tokens,out_tokens\n0,5,2\n0.1,5,2\n")
    target = tmp_path / "out" / "report.json"
    options = ["--trace", str(trace), "--url", "http://127.0.0.1:9", "--json", str(target), "--slo-ttft", "1s"]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 1
    report = json.loads(target.read_text())
    assert report["errors"] == {"connection": 2}
    assert report["trace"]["origin"] == "path"
    assert "connection: 2" in result.output


def test_the_command_explains_wrong_options() -> None:
    unknown = CliRunner().invoke(command, ["--trace", "nope", "--url", "http://127.0.0.1:9"])
    assert unknown.exit_code == 2
    assert "azure-2023-conv" in unknown.output
    late = CliRunner().invoke(command, ["--trace", "nope", "--url", "http://127.0.0.1:9", "--slo-ttft", "soon"])
    assert "250ms" in late.output


def test_the_command_lists_known_traces() -> None:
    result = CliRunner().invoke(command, ["--list"])
    assert result.exit_code == 0
    assert "azure-2023-conv" in result.output.split()
