"""Answers from the cache, coalescing, and what clients may ask of the cache."""

import asyncio
import json
from typing import Any

import pytest

from .conftest import (
    CHAT,
    LAST_CHUNK,
    STREAM_HEAD,
    Answer,
    Engine,
    Received,
    Sidecar,
    Start,
    chat_events,
    chunk,
    json_answer,
    post,
    read_answer,
    token_event,
)

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
GREEDY: dict[str, Any] = {"inputs": "hello", "parameters": {"max_new_tokens": 5}}
CHAT_PATH = "/v1/chat/completions"
GREEDY_CHAT: dict[str, Any] = {"model": "tgi", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}


def status_of(answer: Answer) -> bytes:
    return answer.header(b"cache-status") or b""


class Gate:
    """An engine script that waits until it is opened, and can fail."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.opened = asyncio.Event()
        self.answers: list[bytes] = []

    async def __call__(self, request: Received, reader: Reader, writer: Writer) -> None:
        self.started.set()
        await self.opened.wait()
        answer = self.answers.pop(0) if self.answers else json_answer({"generated_text": "late"})
        if answer == b"":
            writer.transport.abort()
        else:
            writer.write(answer)


async def joined(sidecar: Sidecar, count: int) -> None:
    """Wait until so many requests share the one flight."""
    async with asyncio.timeout(5):
        while [len(flight.subscribers) for flight in sidecar.gateway.flights.values()] != [count]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_second_equal_request_does_not_reach_the_engine(engine: Engine, sidecar: Sidecar) -> None:
    first = await sidecar.post("/generate", GREEDY)
    second = await sidecar.post("/generate", GREEDY)
    assert status_of(first) == b"trimtab; fwd=uri-miss"
    assert status_of(second).startswith(b"trimtab; hit; ttl=")
    assert second.header(b"age") == b"0"
    assert (first.body, first.header(b"content-type")) == (second.body, second.header(b"content-type"))
    assert second.header(b"x-total-time") is None
    assert engine.calls("/generate") == 1
    metrics = await sidecar.metrics()
    assert metrics['trimtab_requests_total{route="generate",code="200",cache="hit"}'] == 1
    assert metrics['trimtab_requests_total{route="generate",code="200",cache="miss"}'] == 1
    assert metrics['trimtab_cache_hits_total{tier="memory"}'] == 1
    assert metrics["trimtab_cache_misses_total"] == 1
    assert metrics['trimtab_tokens_total{direction="saved"}'] == 5
    assert metrics["trimtab_cache_bytes"] > len(first.body)


async def test_the_same_json_in_another_order_is_a_hit(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", b'{"inputs":"a","parameters":{"top_n_tokens":2,"details":true}}')
    second = await sidecar.post(
        "/generate", b'{ "parameters": {"details": true, "top_n_tokens": 2}, "inputs": "\\u0061"}'
    )
    assert b"hit" in status_of(second)


async def test_sampled_answers_are_not_kept_unless_asked_for(engine: Engine, sidecar: Sidecar) -> None:
    sampled = {"inputs": "a", "parameters": {"do_sample": True}}
    for _ in range(2):
        answer = await sidecar.post("/generate", sampled)
        assert status_of(answer).startswith(b"trimtab; fwd=bypass; detail=")
    assert engine.calls("/generate") == 2
    await sidecar.post("/generate", sampled, x_trimtab_cache="sampled")
    answer = await sidecar.post("/generate", sampled, x_trimtab_cache="sampled")
    assert b"hit" in status_of(answer)
    assert b"bypass" in status_of(await sidecar.post("/generate", sampled))


async def test_a_stream_is_replayed_as_the_same_stream(engine: Engine, sidecar: Sidecar) -> None:
    body = {**GREEDY_CHAT, "stream": True}
    first = await sidecar.post(CHAT_PATH, body)
    second = await sidecar.post(CHAT_PATH, body)
    assert first.body == second.body == b"".join(chat_events(3))
    assert second.header(b"content-type") == b"text/event-stream"
    assert b"hit" in status_of(second)
    whole = await sidecar.post(CHAT_PATH, GREEDY_CHAT)
    assert b"miss" in status_of(whole)
    assert whole.json() == CHAT


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([token_event(1), token_event(2)], id="no final event"),
        pytest.param([token_event(1), b'data: {"error":"x","error_type":"generation"}\n\n'], id="error event"),
        pytest.param([token_event(1), b"data: {"], id="half an event"),
    ],
)
async def test_incomplete_and_failed_streams_are_not_kept(
    engine: Engine, sidecar: Sidecar, broken: list[bytes]
) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + b"".join(map(chunk, broken)) + LAST_CHUNK)

    engine.on("/generate_stream", script)
    for _ in range(2):
        answer = await sidecar.post("/generate_stream", GREEDY)
        assert answer.body == b"".join(broken)
    assert engine.calls("/generate_stream") == 2


async def test_a_stream_that_breaks_off_is_not_kept_and_is_seen_to_be_broken(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    engine.on("/generate_stream", script)
    for _ in range(2):
        reader, writer = await sidecar.open()
        writer.write(post("/generate_stream", GREEDY))
        raw = await reader.read()
        assert token_event(1) in raw
        assert b'"error_type": "engine_reset"' in raw
        assert not raw.endswith(LAST_CHUNK)
        writer.close()
    assert engine.calls("/generate_stream") == 2


async def test_errors_are_not_kept(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(json_answer({"error": "bad", "error_type": "validation"}, status=422))

    engine.on("/generate", script)
    for _ in range(2):
        assert (await sidecar.post("/generate", GREEDY)).status == 422
    assert engine.calls("/generate") == 2


async def test_answers_over_the_bound_are_passed_on_but_not_kept(engine: Engine, start: Start) -> None:
    sidecar = await start(cache={"exact": {"maxEntryBytes": 100}})

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(json_answer({"generated_text": "x" * 200}))

    engine.on("/generate", script)
    for _ in range(2):
        assert len((await sidecar.post("/generate", GREEDY)).json()["generated_text"]) == 200
    assert engine.calls("/generate") == 2


async def test_an_entry_grows_old_and_expires(engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar = await start(cache={"exact": {"ttlSeconds": 100}})
    now = 1_000_000.0
    for module in ("hits", "exchange", "flight"):
        monkeypatch.setattr(f"trimtab.sidecar.{module}.time", lambda: now)
    await sidecar.post("/generate", GREEDY)
    now += 60
    answer = await sidecar.post("/generate", GREEDY)
    assert answer.header(b"age") == b"60"
    assert status_of(answer) == b"trimtab; hit; ttl=40"
    assert b"hit" in status_of(await sidecar.post("/generate", GREEDY, cache_control="max-age=60"))
    assert b"miss" in status_of(await sidecar.post("/generate", GREEDY, cache_control="max-age=59"))
    now += 101
    assert b"miss" in status_of(await sidecar.post("/generate", GREEDY))


async def test_no_store_neither_reads_nor_writes(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", GREEDY, cache_control="no-store")
    answer = await sidecar.post("/generate", GREEDY)
    assert b"miss" in status_of(answer)
    answer = await sidecar.post("/generate", GREEDY, cache_control="no-store")
    assert status_of(answer) == b"trimtab; fwd=request"
    assert engine.calls("/generate") == 3


async def test_no_cache_asks_the_engine_and_renews_the_entry(engine: Engine, sidecar: Sidecar) -> None:
    texts = iter(["old", "new"])

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(json_answer({"generated_text": next(texts)}))

    engine.on("/generate", script)
    await sidecar.post("/generate", GREEDY)
    answer = await sidecar.post("/generate", GREEDY, cache_control="no-cache")
    assert answer.json() == {"generated_text": "new"}
    assert (await sidecar.post("/generate", GREEDY)).json() == {"generated_text": "new"}


async def test_only_if_cached(engine: Engine, sidecar: Sidecar) -> None:
    answer = await sidecar.post("/generate", GREEDY, cache_control="only-if-cached")
    assert answer.status == 504
    assert answer.json()["error_type"] == "only_if_cached"
    assert engine.received == []
    await sidecar.post("/generate", GREEDY)
    answer = await sidecar.post("/generate", GREEDY, cache_control="only-if-cached")
    assert answer.status == 200
    sampled = await sidecar.post("/generate", {"inputs": "a"}, cache_control="only-if-cached")
    assert sampled.status == 504


async def test_no_answer_crosses_tenants(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", GREEDY, authorization="Bearer a")
    for other in ({"authorization": "Bearer b"}, {"authorization": "Bearer A"}, {}):
        answer = await sidecar.post("/generate", GREEDY, **other)
        assert b"miss" in status_of(answer)
    assert b"hit" in status_of(await sidecar.post("/generate", GREEDY, authorization="Bearer a"))
    assert engine.calls("/generate") == 4


async def test_a_tenant_in_the_body_is_no_tenant(engine: Engine, start: Start) -> None:
    sidecar = await start(tenancy={"header": "X-Tenant"})
    await sidecar.post("/generate", GREEDY, x_tenant="a")
    assert b"miss" in status_of(await sidecar.post("/generate", GREEDY, x_tenant="b"))
    assert b"miss" in status_of(await sidecar.post("/generate", {**GREEDY, "x-tenant": "a"}))
    assert b"hit" in status_of(await sidecar.post("/generate", GREEDY, x_tenant="a"))


async def test_equal_requests_at_one_time_are_generated_once(engine: Engine, sidecar: Sidecar) -> None:
    gate = Gate()
    engine.on("/generate", gate)
    tasks = [asyncio.create_task(sidecar.post("/generate", GREEDY)) for _ in range(10)]
    await joined(sidecar, 10)
    gate.opened.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.body for answer in answers} == {b'{"generated_text": "late"}'}
    assert sum(status_of(answer) == b"trimtab; fwd=uri-miss; collapsed" for answer in answers) == 9
    assert engine.calls("/generate") == 1
    metrics = await sidecar.metrics()
    assert metrics['trimtab_requests_total{route="generate",code="200",cache="coalesced"}'] == 9
    assert metrics["trimtab_in_flight"] == 0


async def test_who_joins_a_running_stream_gets_all_of_it(engine: Engine, sidecar: Sidecar) -> None:
    proceed = asyncio.Event()
    events = [token_event(1), token_event(2), token_event(3, final="aaa")]

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(events[0]) + chunk(events[1]))
        await writer.drain()
        await proceed.wait()
        writer.write(chunk(events[2]) + LAST_CHUNK)

    engine.on("/generate_stream", script)
    reader, writer = await sidecar.open()
    writer.write(post("/generate_stream", GREEDY))
    await reader.readuntil(events[1])
    late_reader, late_writer = await sidecar.open()
    late_writer.write(post("/generate_stream", GREEDY))
    await late_reader.readuntil(events[1])
    proceed.set()
    assert events[2] in await reader.readuntil(LAST_CHUNK)
    assert events[2] in await late_reader.readuntil(LAST_CHUNK)
    assert engine.calls("/generate_stream") == 1
    writer.close()
    late_writer.close()


async def test_the_first_one_leaving_does_not_harm_the_others(engine: Engine, sidecar: Sidecar) -> None:
    gate = Gate()
    engine.on("/generate", gate)
    _, writer = await sidecar.open()
    writer.write(post("/generate", GREEDY))
    await gate.started.wait()
    other = asyncio.create_task(sidecar.post("/generate", GREEDY))
    await joined(sidecar, 2)
    writer.close()
    await joined(sidecar, 1)
    gate.opened.set()
    assert (await other).json() == {"generated_text": "late"}
    assert engine.calls("/generate") == 1


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(json_answer({"error": "x", "error_type": "overloaded"}, status=429), id="429"),
        pytest.param(json_answer({"error": "x", "error_type": "generation"}, status=424), id="424"),
        pytest.param(json_answer({"error": "x", "error_type": "incomplete_generation"}, status=500), id="500"),
        pytest.param(b"", id="reset"),
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
    ],
)
async def test_the_failure_of_the_first_does_not_fail_the_others(
    engine: Engine, sidecar: Sidecar, failure: bytes
) -> None:
    gate = Gate()
    gate.answers = [failure]
    engine.on("/generate", gate)
    tasks = [asyncio.create_task(sidecar.post("/generate", GREEDY)) for _ in range(5)]
    await joined(sidecar, 5)
    gate.opened.set()
    answers = await asyncio.gather(*tasks)
    assert sorted(answer.status for answer in answers)[:4] == [200] * 4
    assert sum(answer.status >= 424 for answer in answers) == 1
    assert engine.calls("/generate") == 2


async def test_a_lasting_failure_reaches_everybody_after_few_tries(engine: Engine, sidecar: Sidecar) -> None:
    gate = Gate()
    gate.answers = [json_answer({"error": "x", "error_type": "generation"}, status=424)] * 50
    engine.on("/generate", gate)
    tasks = [asyncio.create_task(sidecar.post("/generate", GREEDY)) for _ in range(8)]
    await joined(sidecar, 8)
    gate.opened.set()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {424}
    assert engine.calls("/generate") <= 8
    await sidecar.settled()


async def test_uncacheable_requests_are_not_coalesced(engine: Engine, sidecar: Sidecar) -> None:
    gate = Gate()
    engine.on("/generate", gate)
    tasks = [asyncio.create_task(sidecar.post("/generate", {"inputs": "a"})) for _ in range(4)]
    async with asyncio.timeout(5):
        while engine.calls("/generate") < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    gate.opened.set()
    await asyncio.gather(*tasks)


async def test_a_hit_needs_no_engine_and_no_place(engine: Engine, start: Start) -> None:
    sidecar = await start(admission={"maxInFlight": 1, "maxQueue": 0})
    await sidecar.post("/generate", GREEDY)
    gate = Gate()
    engine.on("/generate", gate)
    busy = asyncio.create_task(sidecar.post("/generate", {"inputs": "busy", "parameters": {}}))
    await gate.started.wait()
    assert b"hit" in status_of(await sidecar.post("/generate", GREEDY))
    gate.opened.set()
    await busy
    await engine.stop()
    assert b"hit" in status_of(await sidecar.post("/generate", GREEDY))


async def test_hits_on_pipelined_requests_keep_their_order(engine: Engine, sidecar: Sidecar) -> None:
    bodies = [{**GREEDY, "inputs": f"number {number}"} for number in range(5)]

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(json_answer({"generated_text": json.loads(request.body)["inputs"]}))

    engine.on("/generate", script)
    for body in bodies[::2]:
        await sidecar.post("/generate", body)
    reader, writer = await sidecar.open()
    writer.write(b"".join(post("/generate", body) for body in bodies * 3))
    answers = [(await read_answer(reader)).json()["generated_text"] for _ in range(15)]
    assert answers == [f"number {number}" for number in range(5)] * 3
    writer.close()


async def test_clearing_the_cache_on_command(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", GREEDY)
    assert (await sidecar.admin_get("/cache/clear", "POST")).json() == {"dropped": 1}
    assert b"miss" in status_of(await sidecar.post("/generate", GREEDY))


async def test_a_cache_switched_off(engine: Engine, start: Start) -> None:
    sidecar = await start(cache={"exact": {"enabled": False}})
    for _ in range(2):
        assert (await sidecar.post("/generate", GREEDY)).status == 200
    assert engine.calls("/generate") == 2


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="half"),
        pytest.param(b"[]", id="array"),
        pytest.param(b'{"inputs": "\xff"}', id="bad UTF-8"),
        pytest.param(b'{"inputs": "a", "inputs": "b"}', id="duplicate key"),
        pytest.param(b'{"inputs": NaN}', id="NaN"),
        pytest.param(b'{"a":' * 5000 + b"1" + b"}" * 5000, id="deep"),
        pytest.param(b'{"inputs": 1' + b"0" * 5000 + b"}", id="huge number"),
        pytest.param(b'{"inputs": "\\ud800"}', id="lone surrogate"),
    ],
)
async def test_bodies_that_are_no_request_get_a_clear_error(engine: Engine, sidecar: Sidecar, body: bytes) -> None:
    for path in ("/generate", CHAT_PATH):
        answer = await sidecar.post(path, body)
        assert answer.status == 400
        error = answer.json()["error"]
        assert "Input validation error" in (error if path == "/generate" else error["message"])
    assert engine.received == []


async def test_requests_answered_by_their_bytes_alone_are_still_looked_up(engine: Engine, sidecar: Sidecar) -> None:
    """From the third time on a request is recognised whole; what it stands for is looked up as ever."""
    reader, writer = await sidecar.open()

    async def ask(authorization: str = "Bearer a") -> bytes:
        writer.write(post("/generate", GREEDY, authorization=authorization))
        return status_of(await read_answer(reader))

    states = [await ask() for _ in range(5)]
    assert [b"hit" in state for state in states] == [False, True, True, True, True]
    assert b"miss" in await ask("Bearer b")
    await sidecar.admin_get("/cache/clear", "POST")
    states = [await ask() for _ in range(3)]
    assert [b"hit" in state for state in states] == [False, True, True]
    sidecar.gateway.draining = True
    writer.write(post("/generate", GREEDY, authorization="Bearer a"))
    answer = await read_answer(reader)
    assert answer.header(b"connection") == b"close"
    assert b"hit" in status_of(answer)
    assert await reader.read() == b""
    writer.close()
    assert (await sidecar.metrics())['trimtab_requests_total{route="generate",code="200",cache="hit"}'] == 7


async def test_what_is_remembered_is_bounded(engine: Engine, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.sidecar.hits.MAX_WHOLE_BYTES", 2000)
    monkeypatch.setattr("trimtab.sidecar.hits.MAX_KEYED_BYTES", 2000)
    for number in range(20):
        for _ in range(3):
            answer = await sidecar.post("/generate", {"inputs": f"question {number}", "parameters": {}})
        assert b"hit" in status_of(answer)
    hits = sidecar.gateway.hits
    assert len(hits._whole) < 10
    assert sum(map(len, hits._maps.values())) < 10


async def test_many_answers_at_one_time_are_all_kept(engine: Engine, sidecar: Sidecar) -> None:
    bodies = [{"inputs": f"question {number}", "parameters": {}} for number in range(100)]
    await asyncio.gather(*(sidecar.post("/generate", body) for body in bodies))
    async with asyncio.timeout(5):
        while sidecar.gateway.unsettled:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not sidecar.gateway.unsettled_by_key
    assert (await sidecar.metrics())["trimtab_cache_entries"] == 100
