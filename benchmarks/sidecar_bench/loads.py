"""Loads: wrk for rates, a blocking socket for latencies, an event loop for many streams."""

import asyncio
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from sidecar_bench.servers import Server, debian_tool

PATH = "/v1/chat/completions"
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def chat_body(text: str, *, stream: bool = False, size: int = 900) -> bytes:
    """A greedy chat request of about 1 KiB."""
    document: dict[str, Any] = {
        "model": "bench",
        "temperature": 0,
        "max_tokens": 256,
        "messages": [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": text + "x" * (size - len(text))},
        ],
    }
    if stream:
        document["stream"] = True
    return json.dumps(document).encode()


def request_bytes(body: bytes, **headers: str) -> bytes:
    """A whole POST."""
    fields = {"Host": "bench", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {PATH} HTTP/1.1\r\n{lines}\r\n".encode() + body


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Rate:
    """One run of wrk."""

    requests_per_second: float
    p50: float  # seconds
    p99: float
    cpu_us: float  # of the server, a request
    errors: int


def wrk(server: Server, folder: Path, body: bytes, connections: int, seconds: float, core: int) -> Rate:
    """Keep `connections` busy with one request for some seconds."""
    script = folder / f"{server.name}.lua"
    headers = {"Content-Type": "application/json", **server.headers}
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    script.write_text('wrk.method = "POST"\n' + "\n".join(lines) + f"\nwrk.body = {json.dumps(body.decode())}\n")
    url = f"http://127.0.0.1:{server.port}{PATH}"
    command = [debian_tool("wrk", "wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "20s"]
    before = server.cpu_seconds()
    with on_core(core):
        result = subprocess.run([*command, "-s", str(script), url], capture_output=True, text=True, check=True)
    used = server.cpu_seconds() - before
    text = result.stdout
    count = int(_found(r"(\d+) requests in", text))
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return Rate(
        requests_per_second=float(_found(r"Requests/sec:\s+([\d.]+)", text)),
        p50=_duration(_found(r"50%\s+(\S+)", text)),
        p99=_duration(_found(r"99%\s+(\S+)", text)),
        cpu_us=used / max(count, 1) * 1e6,
        errors=(int(errors[1]) if errors else 0) + (sum(map(int, broken.groups())) if broken else 0),
    )


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk printed something unexpected:\n{text}")
    return found[1]


def _duration(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    return float(found[1]) * _UNITS[found[2]] if found else float("nan")


class Caller:
    """A client that asks one request after the other on one connection."""

    def __init__(self, server: Server) -> None:
        self.name = server.name
        self.headers = server.headers
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def json(self, body: bytes) -> float:
        """Seconds to the end of a JSON answer."""
        request = request_bytes(body, **self.headers)
        begin = time.perf_counter()
        self._socket.sendall(request)
        data = self._receive()
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        if found is None:
            raise RuntimeError(f"an answer without a length: {data[:300]!r}")
        length = int(found[1])
        while len(rest) < length:
            rest += self._receive()
        return time.perf_counter() - begin

    def stream(self, body: bytes) -> float:
        """Seconds to the first event of a stream; reads it to its end."""
        request = request_bytes(body, **self.headers)
        begin = time.perf_counter()
        self._socket.sendall(request)
        data = b""
        first = 0.0
        while not data.endswith(b"0\r\n\r\n"):
            data += self._receive()
            if not first and b"data: " in data:
                first = time.perf_counter() - begin
        return first

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise RuntimeError(f"{self.name} hung up within an answer")
        return data

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class _Stream(asyncio.Protocol):
    """One stream of events; notes when each piece came."""

    def __init__(self, request: bytes, done: asyncio.Future[None]) -> None:
        self._request = request
        self._done = done
        self.begin = time.perf_counter()
        self.times: list[float] = []
        self.events = 0
        self._tail = b""
        self.complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.begin = time.perf_counter()
        transport.write(self._request)  # type: ignore[attr-defined]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.times.append(time.perf_counter())
        self.events += data.count(b"data: ")
        self._tail = (self._tail + data)[-8:]
        if self._tail.endswith(b"0\r\n\r\n"):
            self.complete = True
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


@dataclass(frozen=True)
class Streams:
    """What became of many streams."""

    complete: int
    events: int
    first_byte: list[float]  # seconds, of each stream
    seconds: float


async def _streams(port: int, requests: list[bytes]) -> Streams:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    made: list[_Stream] = []
    waits = []
    for request in requests:
        done: asyncio.Future[None] = loop.create_future()
        waits.append(done)
        _, protocol = await loop.create_connection(
            lambda request=request, done=done: _Stream(request, done),  # type: ignore[misc]
            "127.0.0.1",
            port,
        )
        made.append(protocol)
    await asyncio.wait(waits, timeout=120)
    return Streams(
        complete=sum(stream.complete for stream in made),
        events=sum(stream.events for stream in made),
        first_byte=[stream.times[0] - stream.begin for stream in made if stream.times],
        seconds=loop.time() - begin,
    )


def open_streams(server: Server, count: int, events: int, pace_ms: int, tag: str, core: int) -> Streams:
    """Open `count` different streams at once and read all of them to the end."""
    headers = {**server.headers, "X-Events": str(events), "X-Pace-Ms": str(pace_ms)}
    requests = [request_bytes(chat_body(f"{tag} {n} ", stream=True), **headers) for n in range(count)]
    with on_core(core):
        return uvloop.run(_streams(server.port, requests))
