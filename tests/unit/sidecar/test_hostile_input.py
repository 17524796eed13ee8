"""Noise, half requests and faults of our own parts: the process lives on, nothing leaks, nobody waits for ever."""

import asyncio
import logging
import random
from typing import Any

import pytest

from trimtab.sidecar.interfaces import Call

from .conftest import Engine, Received, Sidecar, Start, post, read_answer

GREEDY: dict[str, Any] = {"inputs": "hello", "parameters": {}}


@pytest.fixture
async def faults() -> list[dict[str, Any]]:
    """Everything the event loop had to report."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
    return seen


def mutated(dice: random.Random, raw: bytes) -> bytes:
    """A request with some of its bytes replaced, doubled or cut away."""
    data = bytearray(raw)
    for _ in range(dice.randrange(1, 6)):
        place = dice.randrange(len(data))
        kind = dice.random()
        if kind < 0.4:
            data[place] = dice.choice(b'\r\n\0 :,;x0\xff{}"')
        elif kind < 0.6:
            data[place:place] = bytes(dice.choices(range(256), k=dice.randrange(1, 20)))
        elif kind < 0.8:
            del data[place : place + dice.randrange(1, 30)]
        else:
            data[place:place] = data[dice.randrange(len(data)) :][:200]
        if not data:
            return b"\r\n"
    return bytes(data)


SEEDS = [
    post("/generate", GREEDY),
    post("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "stream": True}),
    b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'c\r\n{"inputs":"a\r\n13\r\n","parameters":{}}\r\n0\r\n\r\n',
    b"GET /info HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
]


async def test_hundreds_of_mutated_requests(engine: Engine, start: Start, faults: list[dict[str, Any]]) -> None:
    sidecar = await start(limits={"headTimeoutSeconds": 0.3, "bodyTimeoutSeconds": 0.3, "idleTimeoutSeconds": 1})
    dice = random.Random(11)

    async def tolerant(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    for path in ("/generate", "/v1/chat/completions"):
        engine.on(path, tolerant)

    async def attack() -> None:
        reader, writer = await sidecar.open()
        raw = b"".join(mutated(dice, dice.choice(SEEDS)) for _ in range(dice.randrange(1, 4)))
        cut = dice.randrange(len(raw))
        writer.write(raw[:cut])
        await asyncio.sleep(0)
        try:
            writer.write(raw[cut:])
            if dice.random() < 0.3:
                return
            async with asyncio.timeout(10):
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    for _ in range(8):
        await asyncio.gather(*(attack() for _ in range(50)))
    assert (await sidecar.post("/generate", GREEDY)).status == 200
    await sidecar.settled()
    assert sidecar.gateway.buffered == 0
    for request in engine.received:  # what reached the engine was framed by us alone
        assert request.header(b"transfer-encoding") is None
        assert len([name for name, _ in request.headers if name.lower() == b"content-length"]) <= 1
    assert [fault for fault in faults if "sidecar" in repr(fault)] == []


async def test_a_slow_client_does_not_hold_up_others(engine: Engine, sidecar: Sidecar) -> None:
    slow = [await sidecar.open() for _ in range(200)]
    for _, writer in slow:
        writer.write(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Le")
    async with asyncio.timeout(5):
        for number in range(20):
            assert (await sidecar.post("/generate", {"inputs": str(number), "parameters": {}})).status == 200
    for _, writer in slow:
        writer.close()


class Broken:
    """A part that fails at everything."""

    def key(self, *arguments: Any, **more: Any) -> Any:
        raise RuntimeError("broken")

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        raise RuntimeError("broken")

    async def get(self, key: Any) -> Any:
        raise RuntimeError("broken")

    def put(self, *arguments: Any) -> None:
        raise RuntimeError("broken")

    def unchanged(self, call: Call) -> bool:
        return False

    async def apply(self, *arguments: Any) -> Any:
        raise RuntimeError("broken")

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("part", ["keyer", "make_entry", "remote", "memory_put"])
async def test_a_fault_of_the_cache_never_costs_an_answer(
    engine: Engine, sidecar: Sidecar, part: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if part == "memory_put":
        monkeypatch.setattr(sidecar.gateway.parts.memory, "put", Broken().put)
    else:
        setattr(sidecar.gateway.parts, part, Broken())
        sidecar.gateway.has_remote = part == "remote"
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            async with asyncio.timeout(5):
                assert (await sidecar.post("/generate", GREEDY)).status == 200
            await asyncio.sleep(0.01)
    assert any("Traceback" in record.exc_text for record in caplog.records if record.exc_text)
    assert not sidecar.gateway.unsettled
    await sidecar.settled()


async def test_a_fault_of_the_context_policy_is_a_500_and_not_a_wait(engine: Engine, sidecar: Sidecar) -> None:
    sidecar.gateway.parts.context = Broken()  # type: ignore[assignment]
    async with asyncio.timeout(5):
        answer = await sidecar.post("/generate", GREEDY)
    assert answer.status == 500
    assert answer.json()["error_type"] == "internal"
    assert engine.received == []
    await sidecar.settled()


async def test_an_answer_before_the_whole_body_was_sent(engine: Engine, start: Start) -> None:
    """A client that still sends while it is refused gets the refusal, and its rest is no request."""
    sidecar = await start(limits={"maxBodyBytes": 10})
    reader, writer = await sidecar.open()
    body = post("/echo", b"smuggled", content_type="text/plain")
    writer.write(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (len(body) + 100))
    writer.write(body)
    assert (await read_answer(reader)).status == 413
    assert await reader.read() == b""
    assert engine.received == []
    writer.close()
