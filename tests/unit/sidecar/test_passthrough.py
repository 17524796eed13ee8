"""What the engine and the client see of each other through the sidecar."""

import asyncio
import json

import pytest

from .conftest import (
    LAST_CHUNK,
    STREAM_HEAD,
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
SAMPLED = {"inputs": "hello", "parameters": {"do_sample": True}}


async def test_unknown_routes_pass_through_with_method_query_and_body(engine: Engine, sidecar: Sidecar) -> None:
    raw = b"PUT /v1/unknown?a=%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Odd: \xe4\r\n\r\nabc"
    answer = await sidecar.send(raw)
    assert answer.status == 200
    seen = engine.received[-1]
    assert seen.line == b"PUT /v1/unknown?a=%20b HTTP/1.1"
    assert seen.body == b"abc"
    assert seen.header(b"x-odd") == b"\xe4"
    assert seen.header(b"host") == b"x"


async def test_an_answer_keeps_status_reason_fields_and_bytes(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(
            b"HTTP/1.1 422 Odd Reason\r\nContent-Type: application/json\r\nX-Twice: 1\r\nX-Twice: 2\r\n"
            b"Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 15\r\n\r\n"
            + b'{"error": "\xc3\xa4"}'
        )

    engine.on("/generate", script)
    reader, writer = await sidecar.open()
    writer.write(post("/generate", SAMPLED))
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    assert head[0] == b"HTTP/1.1 422 Odd Reason"
    assert head[1:4] == [b"Content-Type: application/json", b"X-Twice: 1", b"X-Twice: 2"]
    assert not any(line.lower().startswith((b"x-hop", b"keep-alive", b"connection")) for line in head)
    assert await reader.readexactly(15) == b'{"error": "\xc3\xa4"}'
    writer.close()


async def test_hop_by_hop_fields_of_the_request_stay_here(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", SAMPLED, connection="keep-alive, x-mine", x_mine="1", te="trailers", x_other="2")
    seen = engine.received[-1]
    assert seen.header(b"x-mine") is None
    assert seen.header(b"te") is None
    assert seen.header(b"x-other") == b"2"
    assert seen.header(b"connection") is None


async def test_each_event_of_a_stream_arrives_before_the_next_is_made(engine: Engine, sidecar: Sidecar) -> None:
    release = asyncio.Queue[None]()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD)
        for index in range(1, 4):
            writer.write(chunk(token_event(index, final="aaa" if index == 3 else None)))
            await writer.drain()
            await release.get()
        writer.write(LAST_CHUNK)

    engine.on("/generate_stream", script)
    reader, writer = await sidecar.open()
    writer.write(post("/generate_stream", SAMPLED))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert b"x-accel-buffering: no" in head
    for index in range(1, 4):
        size = int(await reader.readline(), 16)
        event = await reader.readexactly(size)
        assert event == token_event(index, final="aaa" if index == 3 else None)
        await reader.readexactly(2)
        release.put_nowait(None)
    assert await reader.readexactly(5) == LAST_CHUNK
    writer.close()
    await sidecar.settled()
    metrics = await sidecar.metrics()
    assert metrics['trimtab_ttft_seconds_count{cache="miss",source="stream"}'] == 1
    assert metrics['trimtab_tpot_seconds_count{cache="miss",source="stream"}'] == 1
    assert metrics['trimtab_tokens_total{direction="out"}'] == 3
    assert metrics['trimtab_tokens_total{direction="in"}'] == 3


async def test_a_client_that_leaves_stops_the_generation(engine: Engine, sidecar: Sidecar) -> None:
    stopped = asyncio.Event()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        try:
            await reader.readexactly(1)  # the closed connection
        finally:
            stopped.set()

    engine.on("/generate_stream", script)
    reader, writer = await sidecar.open()
    writer.write(post("/generate_stream", SAMPLED))
    await reader.readuntil(b"\r\n\r\n")
    writer.close()
    async with asyncio.timeout(5):
        await stopped.wait()
    await sidecar.settled()
    metrics = await sidecar.metrics()
    assert metrics["trimtab_client_disconnects_total"] == 1
    assert metrics['trimtab_requests_total{route="generate_stream",code="499",cache="bypass"}'] == 1


async def test_a_client_that_leaves_while_waiting_for_json_stops_the_generation(
    engine: Engine, sidecar: Sidecar
) -> None:
    started, stopped = asyncio.Event(), asyncio.Event()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        started.set()
        try:
            await reader.readexactly(1)
        finally:
            stopped.set()

    engine.on("/generate", script)
    _, writer = await sidecar.open()
    writer.write(post("/generate", SAMPLED))
    async with asyncio.timeout(5):
        await started.wait()
        writer.close()
        await stopped.wait()


async def test_a_client_that_does_not_read_stops_the_reading_from_the_engine(engine: Engine, sidecar: Sidecar) -> None:
    written = 0

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        piece = chunk(b"data: " + b"x" * 65530 + b"\n\n")
        for _ in range(2000):  # 128 MiB, far more than all socket buffers together
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    engine.on("/generate_stream", script)
    reader, writer = await sidecar.open()
    writer.transport.pause_reading()
    writer.write(post("/generate_stream", SAMPLED))
    before = -1
    async with asyncio.timeout(20):
        while written != before or not written:
            before = written
            await asyncio.sleep(0.3)
    assert written < 64 * 2**20
    client = next(iter(sidecar.gateway.clients))
    assert client.unsent < 4 * 2**20
    writer.transport.resume_reading()
    async with asyncio.timeout(20):
        while written == before:
            await reader.read(65536)
    writer.close()


async def test_connections_are_kept_on_both_sides(engine: Engine, sidecar: Sidecar) -> None:
    reader, writer = await sidecar.open()
    for _ in range(3):
        writer.write(post("/generate", SAMPLED))
        assert (await read_answer(reader)).status == 200
    writer.close()
    await sidecar.post("/generate", SAMPLED)
    assert engine.connections == 1


async def test_a_kept_connection_that_the_engine_closed_is_no_error(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        if engine.calls("/generate") == 2:
            writer.transport.abort()  # as a server does whose keep-alive time ran out
            return
        writer.write(json_answer({"generated_text": "a"}))

    engine.on("/generate", script)
    assert (await sidecar.post("/generate", SAMPLED)).status == 200
    assert (await sidecar.post("/generate", SAMPLED)).status == 200
    assert engine.calls("/generate") == 3


async def test_pipelined_requests_are_answered_in_order(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        number = json.loads(request.body)["n"]
        await asyncio.sleep(0.05 if number == 0 else 0)
        writer.write(json_answer({"n": number}))

    engine.on("/slow", script)
    reader, writer = await sidecar.open()
    writer.write(b"".join(post("/slow", {"n": number}) for number in range(20)))
    assert [(await read_answer(reader)).json()["n"] for _ in range(20)] == list(range(20))
    writer.close()


async def test_a_request_may_come_byte_by_byte(engine: Engine, sidecar: Sidecar) -> None:
    reader, writer = await sidecar.open()
    for byte in b"\r\n" + post("/echo", {"a": "b"}):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await read_answer(reader)).body == b'{"a": "b"}'
    writer.close()


async def test_chunked_request_bodies_reach_the_engine_whole(engine: Engine, sidecar: Sidecar) -> None:
    raw = (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4;ext=1\r\nabcd\r\n2\r\nef\r\n0\r\nTrailer: x\r\n\r\n"
    )
    reader, writer = await sidecar.open()
    writer.write(raw + post("/echo", b"next", content_type="text/plain"))
    assert (await read_answer(reader)).body == b"abcdef"
    assert (await read_answer(reader)).body == b"next"
    assert engine.received[0].header(b"transfer-encoding") is None
    assert engine.received[0].header(b"content-length") == b"6"
    writer.close()


async def test_expect_continue_is_answered_before_the_body(engine: Engine, sidecar: Sidecar) -> None:
    reader, writer = await sidecar.open()
    writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert (await read_answer(reader)).status == 100
    writer.write(b"abc")
    assert (await read_answer(reader)).body == b"abc"
    assert engine.received[0].header(b"expect") is None
    writer.close()


async def test_head_requests_have_no_body_and_the_connection_lives_on(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")

    engine.on("/thing", script)
    reader, writer = await sidecar.open()
    writer.write(b"HEAD /thing HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await read_answer(reader, head_only=True)
    assert answer.header(b"content-length") == b"1234"
    writer.write(post("/echo", b"next", content_type="text/plain"))
    assert (await read_answer(reader)).body == b"next"
    writer.close()


@pytest.mark.parametrize(
    ("connection", "kept"),
    [pytest.param(b"", False, id="closes by default"), pytest.param(b"Connection: keep-alive\r\n", True, id="kept")],
)
async def test_http_1_0_clients(engine: Engine, sidecar: Sidecar, connection: bytes, kept: bool) -> None:
    reader, writer = await sidecar.open()
    writer.write(b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n" + connection + b"\r\nhi")
    answer = await read_answer(reader)
    assert answer.body == b"hi"
    assert (answer.header(b"connection") == b"keep-alive") is kept
    assert reader.at_eof() is False or not kept
    if not kept:
        assert await reader.read() == b""
    writer.close()


async def test_http_1_0_streams_are_not_chunked(engine: Engine, sidecar: Sidecar) -> None:
    request = json.dumps(SAMPLED).encode()
    raw = b"POST /generate_stream HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        request
    )
    answer = await sidecar.send(raw + request)
    assert answer.header(b"transfer-encoding") is None
    assert answer.body == b"".join([token_event(i) for i in range(1, 5)] + [token_event(5, final="aaaaa")])


async def test_an_answer_that_ends_with_its_connection(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"lo")
        await writer.drain()
        writer.close()

    engine.on("/old", script)
    assert (await sidecar.send(b"GET /old HTTP/1.1\r\nHost: a\r\n\r\n")).body == b"hello"


async def test_interim_answers_are_swallowed(engine: Engine, sidecar: Sidecar) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + json_answer({"generated_text": "a"}))

    engine.on("/generate", script)
    assert (await sidecar.post("/generate", SAMPLED)).json() == {"generated_text": "a"}


async def test_a_trace_context_is_passed_on_or_made(engine: Engine, sidecar: Sidecar) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await sidecar.post("/generate", SAMPLED, traceparent=given, tracestate="a=b")
    assert engine.received[-1].header(b"traceparent") == given.encode()
    assert engine.received[-1].header(b"tracestate") == b"a=b"
    await sidecar.post("/generate", SAMPLED, traceparent="nonsense", tracestate="a=b")
    made = engine.received[-1].header(b"traceparent") or b""
    assert [len(part) for part in made.split(b"-")] == [2, 32, 16, 2]
    assert engine.received[-1].header(b"tracestate") is None
    await sidecar.post("/generate", SAMPLED)
    assert engine.received[-1].header(b"traceparent") not in (made, None)


async def test_timings_of_json_answers_come_from_the_engines_headers(engine: Engine, sidecar: Sidecar) -> None:
    await sidecar.post("/generate", SAMPLED)
    metrics = await sidecar.metrics()
    assert metrics['trimtab_tpot_seconds_sum{cache="miss",source="headers"}'] == pytest.approx(0.02)
    assert metrics['trimtab_ttft_seconds_sum{cache="miss",source="headers"}'] == pytest.approx(0.04)
    assert metrics['trimtab_tokens_total{direction="out"}'] == 5
    assert metrics['trimtab_request_duration_seconds_count{cache="miss"}'] == 1


async def test_the_usage_of_a_stream_is_believed_over_the_number_of_events(engine: Engine, start: Start) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + b"".join(map(chunk, chat_events(4, usage=True))) + LAST_CHUNK)

    engine.on("/v1/chat/completions", script)
    sidecar = await start()
    await sidecar.post("/v1/chat/completions", {"messages": [], "stream": True})
    metrics = await sidecar.metrics()
    assert metrics['trimtab_tokens_total{direction="out"}'] == 4
    assert metrics['trimtab_tokens_total{direction="in"}'] == 3
