"""The process as Kubernetes runs it: start, SIGTERM, wrong configuration."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import LAST_CHUNK, STREAM_HEAD, Answer, Engine, Received, chunk, post, read_answer, token_event

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
SAMPLED: dict[str, Any] = {"inputs": "hello", "parameters": {"do_sample": True}}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


class Process:
    """A sidecar of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, admin: int) -> None:
        self.process, self.port, self.admin = process, port, admin

    async def ask(self, raw: bytes, port: int | None = None) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        writer.write(raw)
        try:
            return await read_answer(reader)
        finally:
            writer.close()

    async def wait(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


Run = Callable[..., Awaitable[Process]]


@pytest.fixture
async def run(engine: Engine, tmp_path: Path) -> AsyncIterator[Run]:
    started: list[Process] = []

    async def start(**change: Any) -> Process:
        port, admin = free_port(), free_port()
        config = {
            "upstream": f"http://127.0.0.1:{engine.port}",
            "identity": {"model": "m"},
            "listen": {"host": "127.0.0.1", "port": port, "metricsPort": admin},
            **change,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "trimtab.sidecar",
            env={**os.environ, "TRIMTAB_SIDECAR_CONFIG": str(tmp_path)},
            stderr=asyncio.subprocess.PIPE,
        )
        made = Process(process, port, admin)
        started.append(made)
        async with asyncio.timeout(20):
            while process.returncode is None:
                try:
                    (await asyncio.open_connection("127.0.0.1", admin))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        return made

    yield start
    for made in started:
        if made.process.returncode is None:
            made.process.kill()
            await made.process.wait()


class Paced:
    """A stream whose second event comes when told to."""

    def __init__(self) -> None:
        self.proceed = asyncio.Event()

    async def __call__(self, request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        await writer.drain()
        await self.proceed.wait()
        writer.write(chunk(token_event(2, final="aa")) + LAST_CHUNK)


async def test_sigterm_lets_streams_end_and_serves_until_then(engine: Engine, run: Run) -> None:
    paced = Paced()
    engine.on("/generate_stream", paced)
    sidecar = await run()
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    writer.write(post("/generate_stream", SAMPLED))
    await reader.readuntil(token_event(1))
    sidecar.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.8)
    get = b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n"
    assert (await sidecar.ask(get % b"/readyz", sidecar.admin)).status == 503
    assert (await sidecar.ask(get % b"/healthz", sidecar.admin)).status == 200
    late = await sidecar.ask(post("/generate", SAMPLED))
    assert late.status == 200
    assert late.header(b"connection") == b"close"
    paced.proceed.set()
    assert token_event(2, final="aa") in await reader.readuntil(LAST_CHUNK)
    assert await sidecar.wait() == 0
    writer.close()


async def test_an_idle_sidecar_ends_within_seconds(engine: Engine, run: Run) -> None:
    sidecar = await run()
    _, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    sidecar.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await sidecar.process.wait() == 0
    writer.close()


async def test_a_stream_longer_than_the_drain_time_is_visibly_broken_off(engine: Engine, run: Run) -> None:
    engine.on("/generate_stream", Paced())
    sidecar = await run(drainTimeoutSeconds=0.7)
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    writer.write(post("/generate_stream", SAMPLED))
    await reader.readuntil(token_event(1))
    sidecar.process.send_signal(signal.SIGTERM)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readuntil(LAST_CHUNK)
    assert await sidecar.wait() == 0
    writer.close()


async def test_a_killed_sidecar_stops_its_generations(engine: Engine, run: Run) -> None:
    stopped = asyncio.Event()

    async def script(request: Received, reader: Reader, writer: Writer) -> None:
        writer.write(STREAM_HEAD + chunk(token_event(1)))
        try:
            await reader.readexactly(1)
        finally:
            stopped.set()

    engine.on("/generate_stream", script)
    sidecar = await run()
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    writer.write(post("/generate_stream", SAMPLED))
    await reader.readuntil(token_event(1))
    sidecar.process.kill()
    async with asyncio.timeout(5):
        await stopped.wait()
    writer.close()


async def test_no_text_of_a_prompt_or_an_answer_is_logged(engine: Engine, run: Run) -> None:
    sidecar = await run()
    secret = "c0nfidential"
    for path in ("/generate", "/generate_stream", "/v1/chat/completions", f"/{secret}"):
        await sidecar.ask(post(path, {"inputs": secret, "messages": [{"role": "user", "content": secret}]}))
    await sidecar.ask(post("/generate", b'{"inputs": "' + secret.encode()))
    await engine.stop()
    await sidecar.ask(post("/generate", {"inputs": secret}))
    sidecar.process.send_signal(signal.SIGTERM)
    assert await sidecar.wait() == 0
    assert sidecar.process.stderr is not None
    log = (await sidecar.process.stderr.read()).decode()
    assert "stopped" in log
    assert secret not in log


async def test_a_wrong_configuration_is_exit_code_2_and_a_clear_message(engine: Engine, run: Run) -> None:
    sidecar = await run(admission={"maxInFlight": 0})
    assert await sidecar.wait() == 2
    assert sidecar.process.stderr is not None
    assert "config.json: admission.maxInFlight: " in (await sidecar.process.stderr.read()).decode()


async def test_a_taken_port_is_exit_code_1(engine: Engine, run: Run) -> None:
    sidecar = await run(listen={"host": "127.0.0.1", "port": engine.port, "metricsPort": free_port()})
    assert await sidecar.wait() == 1
