"""A scripted engine and a sidecar before it, in one event loop (uvloop, as in production)."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from trimtab.sidecar.app import App
from trimtab.sidecar.assembly import build_parts
from trimtab.sidecar.config import parse_config
from trimtab.sidecar.gateway import Gateway


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Received:
    """A request as the engine got it."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for found, value in self.headers if found.lower() == name), None)

    @property
    def path(self) -> str:
        return self.line.split(b" ")[1].decode()


Script = Callable[["Received", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def token_event(index: int, text: str = "a", *, final: str | None = None) -> bytes:
    details = {"finish_reason": "length", "generated_tokens": index, "seed": None, "input_length": 3}
    event = {
        "index": index,
        "token": {"id": index, "text": text, "logprob": -0.5, "special": False},
        "generated_text": final,
        "details": details if final is not None else None,
    }
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"x-compute-type: gpu+optimized\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def json_answer(document: Any, status: int = 200, extra: bytes = b"") -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
        status,
        len(body),
        extra,
        body,
    )


CHAT = {
    "object": "chat.completion",
    "id": "",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "hello"}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


@dataclass
class Engine:
    """A server whose answers are scripted by path; counts what it saw."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    disconnects: int = 0
    connections: int = 0
    scripts: dict[str, Script] = field(default_factory=dict)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    server: asyncio.Server | None = None

    def on(self, path: str, script: Script) -> None:
        self.scripts[path] = script

    def calls(self, path: str) -> int:
        return sum(request.path == path for request in self.received)

    async def start(self, port: int = 0) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**24)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None
        for writer in list(self.writers):
            writer.transport.abort()
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                request = await read_request(reader)
                self.received.append(request)
                script = self.scripts.get(request.path, default_script)
                await script(request, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnects += 1
        finally:
            self.writers.discard(writer)
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> Received:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    headers = [(n, v.strip()) for n, _, v in (line.partition(b":") for line in lines[1:] if line)]
    length = next((int(v) for n, v in headers if n.lower() == b"content-length"), 0)
    return Received(lines[0], headers, await reader.readexactly(length))


async def default_script(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind = request.header(b"content-type")
    body = json.loads(request.body) if request.body and kind == b"application/json" else {}
    if request.path == "/health":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    elif request.path == "/generate_stream":
        events = [token_event(i) for i in range(1, 5)] + [token_event(5, final="aaaaa")]
        writer.write(STREAM_HEAD + b"".join(chunk(event) for event in events) + LAST_CHUNK)
    elif request.path == "/v1/chat/completions" and body.get("stream"):
        writer.write(STREAM_HEAD + b"".join(chunk(event) for event in chat_events(3)) + LAST_CHUNK)
    elif request.path == "/v1/chat/completions":
        writer.write(json_answer(CHAT))
    elif request.path == "/generate":
        timings = b"x-total-time: 120\r\nx-inference-time: 100\r\nx-generated-tokens: 5\r\nx-prompt-tokens: 3\r\n"
        writer.write(json_answer({"generated_text": "aaaaa"}, extra=timings))
    elif request.path == "/echo":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(request.body), request.body))
    else:
        writer.write(json_answer({"path": request.path}))


def chat_events(count: int, *, usage: bool = False) -> list[bytes]:
    def event(choices: list[Any], used: Any = None) -> bytes:
        document = {"object": "chat.completion.chunk", "id": "", "choices": choices, "usage": used}
        return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"

    out = []
    for number in range(count):
        reason = "stop" if number == count - 1 else None
        delta = {"role": "assistant", "content": f"t{number}"}
        out.append(event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]))
    if usage:
        out.append(event([], {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}))
    return [*out, b"data: [DONE]\n\n"]


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for found, value in self.headers if found.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    status = int(lines[0].split(b" ")[1])
    headers = [(n.lower(), v.strip()) for n, _, v in (line.partition(b":") for line in lines[1:] if line)]
    fields = dict(headers)
    if head_only or status in (100, 204, 304):
        return Answer(status, headers, b"")
    if fields.get(b"transfer-encoding") == b"chunked":
        parts = []
        while size := int(await reader.readline(), 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        return Answer(status, headers, b"".join(parts))
    if b"content-length" in fields:
        return Answer(status, headers, await reader.readexactly(int(fields[b"content-length"])))
    return Answer(status, headers, await reader.read())


@dataclass
class Sidecar:
    app: App
    gateway: Gateway
    port: int
    admin: int

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)

    async def send(self, raw: bytes, *, head_only: bool = False) -> Answer:
        """One request on a connection of its own."""
        reader, writer = await self.open()
        try:
            writer.write(raw)
            return await read_answer(reader, head_only=head_only)
        finally:
            writer.close()

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        return await self.send(post(path, body, **headers))

    async def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as Prometheus would read them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        text = (await read_answer(reader)).body.decode()
        writer.close()
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def admin_get(self, path: str, method: str = "GET") -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin)
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        answer = await read_answer(reader)
        writer.close()
        return answer

    async def settled(self) -> None:
        """Wait until nothing is in flight any more."""
        async with asyncio.timeout(10):
            while self.gateway.active or self.gateway.flying or self.gateway.admission.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def post(path: str, body: Any, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": "a", "content-type": "application/json", "content-length": str(len(data))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in change.items():
        old = out.get(name)
        out[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def running(upstream: int, directory: Path, change: dict[str, Any]) -> AsyncIterator[Sidecar]:
    config = merged(
        {
            "upstream": f"http://127.0.0.1:{upstream}",
            "identity": {"model": "m"},
            "listen": {"host": "127.0.0.1", "port": 0, "metricsPort": 0},
            "drainTimeoutSeconds": 5,
        },
        change,
    )
    parsed = parse_config(json.dumps(config).encode())
    gateway = Gateway(parsed, build_parts(parsed), asyncio.get_running_loop())
    app = App(parsed, directory, gateway)
    await app.start()
    try:
        yield Sidecar(app, gateway, *app.ports)
    finally:
        await app.close()


Start = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
async def start(engine: Engine, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts sidecars with changed configuration; they end with the test."""
    stack: list[Any] = []

    async def run(**change: Any) -> Sidecar:
        context = running(engine.port, tmp_path, change)
        stack.append(context)
        return await context.__aenter__()

    yield run
    for context in reversed(stack):
        await context.__aexit__(None, None, None)


@pytest.fixture
async def sidecar(start: Start) -> Sidecar:
    return await start()
