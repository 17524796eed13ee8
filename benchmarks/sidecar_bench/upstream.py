"""An engine that answers at once, or at a given pace: `python -m sidecar_bench.upstream PORT`.

JSON: one chat completion of about 1 KiB. Streams: `x-events` events (default 32), one each `x-pace-ms` (default: all at
once). So that what is measured is the way through a gateway and nothing else.
"""

import asyncio
import json
import sys

import uvloop

CONTENT = "An answer of the usual length, which is not long. " * 15
ANSWER = json.dumps(
    {
        "object": "chat.completion",
        "id": "",
        "created": 1700000000,
        "model": "bench",
        "system_fingerprint": "3.3.7-native",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": CONTENT},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 230, "completion_tokens": 160, "total_tokens": 390},
    }
).encode()
_JSON = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-prompt-tokens: 230\r\nx-generated-tokens: 160\r\n"
    b"x-total-time: 1\r\nx-inference-time: 1\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
)
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(number: int, count: int) -> bytes:
    """One chunk of the transfer coding that holds one event."""
    document = {
        "object": "chat.completion.chunk",
        "id": "",
        "created": 1700000000,
        "model": "bench",
        "system_fingerprint": "3.3.7-native",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": " token"},
                "logprobs": None,
                "finish_reason": "stop" if number == count - 1 else None,
            }
        ],
        "usage": None,
    }
    data = b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection; requests come one at a time."""

    def __init__(self) -> None:
        self._in = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._in += data
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._in[:end].lower()
        length = _number(head, b"content-length", 0)
        if len(self._in) < end + 4 + length:
            return
        body = self._in[end + 4 : end + 4 + length]
        self._in = self._in[end + 4 + length :]
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(_JSON)
            return
        count, pace = _number(head, b"x-events", 32), _number(head, b"x-pace-ms", 0)
        events = [event(number, count) for number in range(count)]
        if not pace:
            self._transport.write(_SSE + b"".join(events) + _DONE)
        else:
            self._task = asyncio.get_running_loop().create_task(self._paced(events, pace / 1000))

    async def _paced(self, events: list[bytes], pace: float) -> None:
        loop = asyncio.get_running_loop()
        self._transport.write(_SSE)
        begin = loop.time()
        for number, piece in enumerate(events):
            await asyncio.sleep(begin + number * pace - loop.time())
            self._transport.write(piece)
        self._transport.write(_DONE)


def _number(head: bytes, name: bytes, default: int) -> int:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return int(rest.split(b"\r\n")[0]) if found else default


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
