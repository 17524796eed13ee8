"""Answers in the shapes of TGI 3.3.7, for the tests of what is stored."""

import json
from typing import Any

from trimtab.sidecar.interfaces import Call, Route

JSON = ((b"content-type", b"application/json"),)
SSE = ((b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"))


def call(route: Route, *, stream: bool = False, units: int = 1) -> Call:
    return Call(route, b"{}", {}, stream, units)


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return b"data:" + text.encode() + b"\n\n"


def token(index: int, text: str, full: str | None = None, details: Any = None) -> dict[str, Any]:
    made = {"id": index, "text": text, "logprob": -0.5, "special": False}
    return {"index": index, "token": made, "generated_text": full, "details": details}


def chunk(text: str, reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {
        "index": index,
        "delta": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": reason,
    }
    return {"object": "chat.completion.chunk", "id": "", "created": 1, "model": "m", "choices": [choice], **more}


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
DETAILS = {"finish_reason": "length", "generated_tokens": 2, "seed": None, "input_length": 7}
TOOL_DELTA = {"role": "assistant", "tool_calls": [{"index": 0, "id": "0", "function": {"name": "f", "arguments": "{"}}]}

NATIVE_DOCUMENT = {"generated_text": "ab"}
NATIVE_DETAILED = {
    "generated_text": "ab",
    "details": {"finish_reason": "eos_token", "generated_tokens": 2, "prefill": [], "tokens": []},
}
CHAT_DOCUMENT = {
    "object": "chat.completion",
    "id": "",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
TEXT_DOCUMENT = {
    "object": "text_completion",
    "choices": [
        {"index": 0, "text": "ab", "finish_reason": "length"},
        {"index": 1, "text": "c", "finish_reason": "length"},
    ],
    "usage": USAGE,
}

NATIVE_STREAM = [event(token(1, "a")), event(token(2, "b", "ab", DETAILS))]
CHAT_STREAM = [
    event(chunk("a")),
    event(chunk("b")),
    event(chunk("", "stop")),
    event({"object": "chat.completion.chunk", "choices": [], "usage": USAGE}),
    event("[DONE]"),
]
TOOL_STREAM = [
    event({"choices": [{"index": 0, "delta": TOOL_DELTA, "finish_reason": None}], "usage": None}),
    event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}),
    event("[DONE]"),
]
TEXT_STREAM = [
    event({"choices": [{"index": 0, "text": "a", "finish_reason": ""}]}),
    event({"choices": [{"index": 1, "text": "b", "finish_reason": ""}]}),
    event({"choices": [{"index": 0, "text": "", "finish_reason": "eos_token"}], "usage": USAGE}),
    event({"choices": [{"index": 1, "text": "", "finish_reason": "length"}], "usage": USAGE}),
    event("[DONE]"),
]
STREAMS = [
    (call(Route.GENERATE_STREAM, stream=True), NATIVE_STREAM),
    (call(Route.COMPAT, stream=True), NATIVE_STREAM),
    (call(Route.CHAT, stream=True), CHAT_STREAM),
    (call(Route.CHAT, stream=True), TOOL_STREAM),
    (call(Route.COMPLETIONS, stream=True, units=2), TEXT_STREAM),
]
