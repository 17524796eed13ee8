"""An engine that is away, dies, hangs, lies, or reports errors within streams."""

import asyncio
import json
import random
from typing import Any

import pytest

from .conftest import (
    LAST_CHUNK,
    STREAM_HEAD,
    Engine,
    Received,
    Sidecar,
    Start,
    chunk,
    json_answer,
    post,
    token_event,
)

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
SAMPLED: dict[str, Any] = {"inputs": "hello", "parameters": {"do_sample": True}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "stream": True}


def says(data: bytes) -> Any:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.close()

    return script


async def test_no_engine_is_a_503_at_once(engine: Engine, sidecar: Sidecar) -> None:
    await engine.stop()
    for path in ("/generate", "/generate_stream", "/info"):
        answer = await sidecar.post(path, SAMPLED)
        assert answer.status == 503
        assert answer.header(b"retry-after") == b"1"
        assert answer.json()["error_type"] == "engine_unavailable"
    assert (await sidecar.metrics())['trimtab_upstream_errors_total{kind="connect"}'] == 3


async def test_an_engine_that_comes_back_is_used_again(engine: Engine, sidecar: Sidecar) -> None:
    port = engine.port
    assert (await sidecar.post("/generate", SAMPLED)).status == 200
    await engine.stop()
    assert (await sidecar.post("/generate", SAMPLED)).status == 503
    await engine.start(port)
    assert (await sidecar.post("/generate", SAMPLED)).status == 200


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="closed without a word"),
        pytest.param(b"nonsense\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", id="ambiguous"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", id="long head"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", id="upgrade"),
    ],
)
async def test_no_sensible_answer_is_a_502(engine: Engine, sidecar: Sidecar, data: bytes) -> None:
    engine.on("/generate", says(data))
    answer = await sidecar.post("/generate", SAMPLED)
    assert answer.status == 502
    assert answer.json()["error_type"].startswith("engine_")
    await sidecar.settled()


async def test_a_json_answer_that_breaks_off_is_seen_to_be_broken(engine: Engine, sidecar: Sidecar) -> None:
    engine.on("/generate", says(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"))
    with pytest.raises(asyncio.IncompleteReadError):
        await sidecar.post("/generate", {"inputs": "a", "parameters": {}})
    await sidecar.settled()
    assert len(sidecar.gateway.parts.memory or []) == 0


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        pytest.param(b"", {"responseTimeoutSeconds": 0.3}, id="no answer"),
        pytest.param(STREAM_HEAD, {"silenceTimeoutSeconds": 0.3}, id="head only"),
    ],
)
async def test_a_hanging_engine_is_a_504(
    engine: Engine, start: Start, script: bytes, settings: dict[str, float]
) -> None:
    async def hang(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(script)
        await reader.readexactly(1)

    engine.on("/generate_stream", hang)
    sidecar = await start(engine=settings)
    answer = await sidecar.post("/generate_stream", SAMPLED)
    assert answer.status == 504
    await sidecar.settled()
    async with asyncio.timeout(5):
        while not engine.disconnects:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_stream_that_falls_silent_is_broken_off(engine: Engine, start: Start) -> None:
    async def hang(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        await reader.readexactly(1)

    engine.on("/generate_stream", hang)
    sidecar = await start(engine={"silenceTimeoutSeconds": 0.3})
    reader, writer = await sidecar.open()
    writer.write(post("/generate_stream", SAMPLED))
    raw = await reader.read()
    assert token_event(1) in raw
    assert b"engine_timeout" in raw
    assert not raw.endswith(LAST_CHUNK)
    writer.close()


NATIVE_OVERLOAD = b'data: {"error":"Model is overloaded","error_type":"overloaded"}\n\n'
OPENAI_OVERLOAD = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\ndata: [DONE]\n\n'
OPENAI_INVALID = b'data: {"error":{"message":"Input validation error: x","http_status_code":422}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("path", "event", "status"),
    [
        pytest.param("/generate_stream", NATIVE_OVERLOAD, 429, id="native overload"),
        pytest.param("/v1/chat/completions", OPENAI_OVERLOAD, 429, id="OpenAI overload, stated as 422"),
        pytest.param("/v1/chat/completions", OPENAI_INVALID, 422, id="OpenAI validation"),
        pytest.param(
            "/generate_stream",
            b'data: {"error":"Request failed during generation: x","error_type":"generation"}\n\n',
            424,
            id="native generation",
        ),
    ],
)
async def test_an_error_before_the_first_token_becomes_a_status(
    engine: Engine, sidecar: Sidecar, path: str, event: bytes, status: int
) -> None:
    engine.on(path, says(STREAM_HEAD + chunk(event) + LAST_CHUNK))
    answer = await sidecar.post(path, {**CHAT, **SAMPLED})
    assert answer.status == status
    assert answer.header(b"content-type") == b"application/json"
    error = answer.json()["error"]
    assert (error["message"] if path.startswith("/v1") else error) in event.decode()
    assert (await sidecar.metrics())['trimtab_upstream_errors_total{kind="event"}'] == 1
    await sidecar.settled()


async def test_errors_of_streams_stay_events_if_so_configured(engine: Engine, start: Start) -> None:
    sidecar = await start(engine={"streamErrors": "event"})
    engine.on("/generate_stream", says(STREAM_HEAD + chunk(NATIVE_OVERLOAD) + LAST_CHUNK))
    answer = await sidecar.post("/generate_stream", SAMPLED)
    assert (answer.status, answer.body) == (200, NATIVE_OVERLOAD)


async def test_an_error_after_the_first_token_stays_an_event_and_is_counted(engine: Engine, sidecar: Sidecar) -> None:
    events = chunk(token_event(1)) + chunk(NATIVE_OVERLOAD)
    engine.on("/generate_stream", says(STREAM_HEAD + events + LAST_CHUNK))
    answer = await sidecar.post("/generate_stream", SAMPLED)
    assert answer.body == token_event(1) + NATIVE_OVERLOAD
    assert (await sidecar.metrics())['trimtab_upstream_errors_total{kind="event"}'] == 1


async def test_a_comment_before_the_first_token_releases_the_head(engine: Engine, sidecar: Sidecar) -> None:
    proceed = asyncio.Event()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(b":\n\n"))
        await writer.drain()
        await proceed.wait()
        writer.write(chunk(token_event(1, final="a")) + LAST_CHUNK)

    engine.on("/generate_stream", script)
    reader, writer = await sidecar.open()
    writer.write(post("/generate_stream", SAMPLED))
    async with asyncio.timeout(5):
        await reader.readuntil(b":\n\n")
    proceed.set()
    await reader.readuntil(LAST_CHUNK)
    writer.close()
    assert (await sidecar.metrics())['trimtab_tokens_total{direction="out"}'] == 1


async def test_readiness_follows_the_engine(engine: Engine, sidecar: Sidecar) -> None:
    assert (await sidecar.admin_get("/readyz")).status == 200
    assert (await sidecar.admin_get("/readyz")).status == 200
    assert engine.calls("/health") == 1
    assert (await sidecar.admin_get("/healthz")).status == 200
    await engine.stop()
    async with asyncio.timeout(10):
        while (await sidecar.admin_get("/readyz")).status == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (await sidecar.admin_get("/healthz")).status == 200


async def test_tokens_that_flow_are_health_enough(engine: Engine, sidecar: Sidecar) -> None:
    engine.on("/health", says(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"))
    assert (await sidecar.admin_get("/readyz")).status == 503
    await sidecar.post("/generate", SAMPLED)
    assert (await sidecar.admin_get("/readyz")).status == 200


async def test_the_admin_listener_refuses_what_it_does_not_know(engine: Engine, sidecar: Sidecar) -> None:
    assert (await sidecar.admin_get("/nothing")).status == 404
    assert (await sidecar.admin_get("/metrics", "POST")).status == 405
    assert (await sidecar.admin_get("/status")).json()["maxInFlight"] == 128


def events_of(name: str) -> list[bytes]:
    return [token_event(index, name, final=name * 5 if index == 5 else None) for index in range(1, 6)]


def moody(dice: random.Random) -> Any:
    """An engine that resets, refuses or dies within a stream now and then."""

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        fate = dice.random()
        if fate < 0.1:
            writer.transport.abort()
            return
        if fate < 0.2:
            writer.write(json_answer({"error": "x", "error_type": "overloaded"}, status=429))
            return
        writer.write(STREAM_HEAD)
        for number, event in enumerate(events_of(json.loads(request.body)["inputs"])):
            writer.write(chunk(event))
            await asyncio.sleep(dice.random() * 0.01)
            if fate < 0.3 and number == 2:
                writer.transport.abort()
                return
        writer.write(LAST_CHUNK)

    return script


async def take_stream(reader: Reader, head: bytes) -> tuple[bytes, bool]:
    """(body so far, whether it came whole)."""
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), None)
    body = b""
    try:
        if length is not None:
            return await reader.readexactly(length), True
        while size := int(await reader.readline() or b"-1", 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ValueError, ConnectionError):
        return body, False
    return body, True


async def one_client(sidecar: Sidecar, dice: random.Random, name: str) -> str:
    """What became of one request; asserts that whatever came was right."""
    reader, writer = await sidecar.open()
    try:
        writer.write(post("/generate_stream", {"inputs": name, "parameters": {}}))
        if dice.random() < 0.15:
            await asyncio.sleep(dice.random() * 0.03)
            return "left"
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            return "error"
        body, whole = await take_stream(reader, head)
        expected = b"".join(events_of(name))
        assert body == expected if whole else expected.startswith(body.partition(b'data: {"error"')[0])
        return "whole" if whole else "broken"
    finally:
        writer.close()


async def test_random_faults_under_load_leave_nothing_behind(engine: Engine, start: Start) -> None:
    """Engine and clients fail at random moments; every client gets a whole answer, an error or a visible break."""
    dice = random.Random(7)
    engine.on("/generate_stream", moody(dice))
    sidecar = await start(admission={"maxInFlight": 8, "queueTimeoutSeconds": 20})
    outcomes: list[str] = []
    async with asyncio.timeout(60):
        for _ in range(6):
            outcomes += await asyncio.gather(*(one_client(sidecar, dice, f"n{number % 12}") for number in range(50)))
            await sidecar.admin_get("/cache/clear", "POST")
    await sidecar.settled()
    assert outcomes.count("whole") > 100
    assert outcomes.count("broken") + outcomes.count("error") > 0
    gateway = sidecar.gateway
    assert (gateway.active, gateway.buffered, gateway.admission.in_flight, gateway.admission.depth) == (0, 0, 0, 0)
    assert not gateway.flights
    assert not gateway.flying
