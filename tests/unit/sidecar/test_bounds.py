"""Limits on what a client may send, hold and take, and the queue as clients see it."""

import asyncio
import json
from pathlib import Path
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
    read_answer,
    token_event,
)

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
SAMPLED: dict[str, Any] = {"inputs": "hello", "parameters": {"do_sample": True}}


class Hold:
    """An engine script that answers when told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.running = 0
        self.most = 0

    async def __call__(self, request: Received, reader: Reader, writer: Writer) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        writer.write(json_answer({"generated_text": "a"}))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431, id="long head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, 431, id="endless head"),
        pytest.param(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n", 413, id="long body"),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n", 413, id="long chunk"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="length and coding",
        ),
        pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, id="bad chunk"
        ),
    ],
)
async def test_a_refused_request_gets_an_error_and_no_second_chance(
    engine: Engine, start: Start, raw: bytes, status: int
) -> None:
    sidecar = await start(limits={"maxBodyBytes": 1000})
    reader, writer = await sidecar.open()
    writer.write(raw)
    answer = await read_answer(reader)
    assert answer.status == status
    assert answer.header(b"connection") == b"close"
    assert answer.json()["error"]
    writer.write(post("/echo", b"smuggled", content_type="text/plain"))
    assert await reader.read() == b""
    assert engine.received == []
    assert sidecar.gateway.buffered == 0
    writer.close()


async def test_a_long_body_is_refused_although_the_client_goes_on_sending(engine: Engine, start: Start) -> None:
    sidecar = await start(limits={"maxBodyBytes": 1000})
    reader, writer = await sidecar.open()
    writer.write(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 500_000)
    assert (await read_answer(reader)).status == 413
    writer.close()


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        pytest.param(b"POST /generate HTTP/1.1\r\nHo", "headTimeoutSeconds", id="head"),
        pytest.param(
            b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab", "bodyTimeoutSeconds", id="body"
        ),
    ],
)
async def test_slow_clients_are_told_so(engine: Engine, start: Start, part: bytes, setting: str) -> None:
    sidecar = await start(limits={setting: 0.2})
    reader, writer = await sidecar.open()
    writer.write(part)
    async with asyncio.timeout(5):
        answer = await read_answer(reader)
    assert answer.status == 408
    assert await reader.read() == b""
    writer.close()


async def test_unused_connections_are_closed_and_used_ones_not(engine: Engine, start: Start) -> None:
    sidecar = await start(limits={"idleTimeoutSeconds": 0.6})
    idle_reader, idle_writer = await sidecar.open()
    reader, writer = await sidecar.open()
    request = post("/generate", {"inputs": "a", "parameters": {}})
    closed = asyncio.create_task(idle_reader.read())
    while not closed.done():
        writer.write(request)
        assert (await read_answer(reader)).status == 200
        await asyncio.sleep(0.05)
    writer.write(request)
    assert (await read_answer(reader)).status == 200
    writer.close()
    idle_writer.close()


async def test_a_client_that_never_reads_is_cut_off(engine: Engine, start: Start) -> None:
    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk(b"data: " + b"x" * 65530 + b"\n\n"))
            await writer.drain()

    engine.on("/generate_stream", script)
    sidecar = await start(limits={"writeTimeoutSeconds": 0.5})
    _, writer = await sidecar.open()
    writer.transport.pause_reading()
    writer.write(post("/generate_stream", SAMPLED))
    await until(lambda: engine.received)
    await until(lambda: not sidecar.gateway.clients)
    await sidecar.settled()
    await until(lambda: engine.disconnects == 1)
    writer.close()


async def test_too_many_connections_are_refused(engine: Engine, start: Start) -> None:
    sidecar = await start(limits={"maxConnections": 2})
    held = [await sidecar.open() for _ in range(2)]
    assert (await sidecar.post("/generate", SAMPLED)).status == 503
    for _, writer in held:
        writer.close()
    await until(lambda: not sidecar.gateway.clients)
    assert (await sidecar.post("/generate", SAMPLED)).status == 200


async def test_bodies_together_are_bounded(engine: Engine, start: Start) -> None:
    sidecar = await start(limits={"maxBufferedBytes": 100_000})
    readers = []
    for _ in range(3):
        reader, writer = await sidecar.open()
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n" + b"x" * 100)
        readers.append((reader, writer))
    assert (await read_answer(readers[2][0])).status == 503
    for _, writer in readers:
        writer.close()
    await until(lambda: sidecar.gateway.buffered == 0)


async def test_many_pipelined_requests_do_not_pile_up(engine: Engine, sidecar: Sidecar) -> None:
    hold = Hold()
    engine.on("/generate", hold)
    reader, writer = await sidecar.open()
    request = post("/generate", {"inputs": "x" * 1000, "parameters": {"do_sample": True}})
    writer.write(request * 3000)
    await until(lambda: hold.running == 1)
    await asyncio.sleep(0.2)
    client = next(iter(sidecar.gateway.clients))
    assert len(client._in) < 2**20
    hold.release.set()
    for _ in range(3000):
        assert (await read_answer(reader)).status == 200
    writer.close()


async def test_no_more_than_the_limit_are_at_the_engine(engine: Engine, start: Start) -> None:
    sidecar = await start(admission={"maxInFlight": 3})
    hold = Hold()
    engine.on("/generate", hold)
    tasks = [asyncio.create_task(sidecar.post("/generate", SAMPLED)) for _ in range(10)]
    await until(lambda: hold.running == 3 and sidecar.gateway.admission.depth == 7)
    metrics = await sidecar.metrics()
    assert metrics["trimtab_in_flight"] == 3
    assert metrics["trimtab_queue_depth"] == 7
    assert metrics["trimtab_limit"] == 3
    hold.release.set()
    assert {(await task).status for task in tasks} == {200}
    assert hold.most == 3
    assert (await sidecar.metrics())["trimtab_queue_wait_seconds_count"] == 10


async def test_other_routes_do_not_queue(engine: Engine, start: Start) -> None:
    sidecar = await start(admission={"maxInFlight": 1, "maxQueue": 0})
    hold = Hold()
    engine.on("/generate", hold)
    task = asyncio.create_task(sidecar.post("/generate", SAMPLED))
    await until(lambda: hold.running == 1)
    assert (await sidecar.send(b"GET /info HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
    hold.release.set()
    await task


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions"])
async def test_a_full_queue_is_a_429_in_the_shape_of_the_route(engine: Engine, start: Start, path: str) -> None:
    sidecar = await start(admission={"maxInFlight": 1, "maxQueue": 0})
    hold = Hold()
    engine.on("/generate", hold)
    task = asyncio.create_task(sidecar.post("/generate", SAMPLED))
    await until(lambda: hold.running == 1)
    answer = await sidecar.post(path, {"messages": [], "stream": True, "inputs": "a"})
    assert answer.status == 429
    assert int(answer.header(b"retry-after") or b"0") >= 1
    document = answer.json()
    if path.startswith("/v1"):
        assert document["error"]["type"] == "overloaded"
    else:
        assert document["error_type"] == "overloaded"
    assert (await sidecar.metrics())['trimtab_rejected_total{reason="queue_full"}'] == 1
    hold.release.set()
    await task


async def test_waiting_too_long_is_a_429_and_the_engine_never_sees_it(engine: Engine, start: Start) -> None:
    sidecar = await start(admission={"maxInFlight": 1, "queueTimeoutSeconds": 0.3})
    hold = Hold()
    engine.on("/generate", hold)
    task = asyncio.create_task(sidecar.post("/generate", SAMPLED))
    await until(lambda: hold.running == 1)
    assert (await sidecar.post("/generate", SAMPLED)).status == 429
    hold.release.set()
    assert (await task).status == 200
    assert engine.calls("/generate") == 1


async def test_a_client_that_leaves_the_queue_leaves_no_trace(engine: Engine, start: Start) -> None:
    sidecar = await start(admission={"maxInFlight": 1})
    hold = Hold()
    engine.on("/generate", hold)
    task = asyncio.create_task(sidecar.post("/generate", SAMPLED))
    await until(lambda: hold.running == 1)
    _, writer = await sidecar.open()
    writer.write(post("/generate", SAMPLED))
    await until(lambda: sidecar.gateway.admission.depth == 1)
    writer.close()
    await until(lambda: sidecar.gateway.admission.depth == 0)
    hold.release.set()
    await task
    await sidecar.settled()
    assert engine.calls("/generate") == 1


async def test_the_live_limit_follows_the_file(engine: Engine, start: Start, tmp_path: Path) -> None:
    """As the kubelet does it: a new folder, then the link `..data` renamed over the old one."""

    def publish(number: int, text: str) -> None:
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "live.json").write_text(text)
        link = tmp_path / "..data_tmp"
        link.symlink_to(folder.name)
        link.rename(tmp_path / "..data")
        if not (tmp_path / "live.json").is_symlink():
            (tmp_path / "live.json").symlink_to("..data/live.json")

    publish(1, json.dumps({"maxInFlight": 1}))
    sidecar = await start(admission={"maxInFlight": 50})
    assert sidecar.gateway.admission.bounds.max_in_flight == 1
    hold = Hold()
    engine.on("/generate", hold)
    tasks = [asyncio.create_task(sidecar.post("/generate", SAMPLED)) for _ in range(4)]
    await until(lambda: hold.running == 1 and sidecar.gateway.admission.depth == 3)
    publish(2, json.dumps({"maxInFlight": 3, "maxQueue": 7, "queueTimeoutSeconds": 5}))
    await until(lambda: hold.running == 3)
    publish(3, '{"maxInFlight": 0}')
    await until(lambda: sidecar.gateway.metrics.live_reloads.cell("refused").value == 1)
    publish(4, "not json")
    await until(lambda: sidecar.gateway.metrics.live_reloads.cell("refused").value == 2)
    assert sidecar.gateway.admission.bounds.max_in_flight == 3
    assert sidecar.gateway.admission.bounds.max_queue == 7
    publish(5, json.dumps({"maxInFlight": None}))
    await until(lambda: sidecar.gateway.admission.bounds.max_in_flight == 50)
    assert sidecar.gateway.admission.bounds.max_queue == 256
    hold.release.set()
    await asyncio.gather(*tasks)


async def test_many_open_streams(engine: Engine, start: Start) -> None:
    count = 300
    release = asyncio.Event()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        await writer.drain()
        await release.wait()
        writer.write(chunk(token_event(2, final="aa")) + LAST_CHUNK)

    engine.on("/generate_stream", script)
    sidecar = await start(admission={"maxInFlight": count})
    open_streams = [await sidecar.open() for _ in range(count)]
    for _, writer in open_streams:
        writer.write(post("/generate_stream", SAMPLED))
    for reader, _ in open_streams:
        await reader.readuntil(token_event(1))
    assert (await sidecar.metrics())["trimtab_in_flight"] == count
    release.set()
    for reader, writer in open_streams:
        await reader.readuntil(LAST_CHUNK)
        writer.close()
    await sidecar.settled()
    assert sidecar.gateway.buffered == 0
