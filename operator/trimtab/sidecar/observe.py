"""What an answer tells about itself: events and token counts of streams, the engine's own timings of JSON answers."""

import json
import re
from typing import Any

from trimtab.sidecar.engine import ResponseHead
from trimtab.sidecar.errors import Failure
from trimtab.sidecar.interfaces import Route

_TAIL = 4096
# A quote inside a JSON string is escaped, so `"name":` can only be a member's name.
_OUT = re.compile(rb'"(?:generated_tokens|completion_tokens)":\s*(\d{1,9})')
_IN = re.compile(rb'"(?:input_length|prompt_tokens)":\s*(\d{1,9})')


class StreamWatch:
    """Follows a stream of server-sent events piece by piece, without parsing the events."""

    __slots__ = ("_between", "_break", "events", "first", "last", "tail")

    def __init__(self) -> None:
        self.events = 0
        self.first = 0.0
        self.last = 0.0
        self.tail = b""
        self._break = False
        self._between = True  # the last piece ended with an event

    def feed(self, data: bytes, now: float) -> None:
        """Count the events that end in `data`."""
        count = data.count(b"\n\n")
        if self._break and data[:1] == b"\n":
            count += 1
        if self._between and data[:1] == b":":
            count -= 1  # keep-alive comments come in a piece of their own
        self._between = data[-2:] == b"\n\n" or (self._break and data == b"\n")
        self._break = data[-1:] == b"\n" and not self._between
        if count > 0:
            if not self.events:
                self.first = now
            self.last = now
            self.events += count
        self.tail = data if len(data) >= _TAIL else (self.tail + data)[-_TAIL:]

    def tokens(self) -> tuple[int, int]:
        """(prompt tokens or 0 if unknown, generated tokens: stated by the engine, else one an event)."""
        out = self.events - self.tail.count(b"data: [DONE]") - self.tail.count(b'"choices":[]')
        stated_in, stated_out = _last(_IN, self.tail), _last(_OUT, self.tail)
        return stated_in, stated_out or max(out, 0)


def _last(pattern: re.Pattern[bytes], text: bytes) -> int:
    found = pattern.findall(text)
    return int(found[-1]) if found else 0


def _milliseconds(head: ResponseHead, name: bytes) -> float | None:
    value = head.get(name)
    return int(value) / 1000 if value is not None and value.isdigit() and len(value) < 12 else None


def json_tokens(head: ResponseHead, body_tail: bytes) -> tuple[int, int]:
    """(prompt, generated) tokens of an answer that is no stream, from TGI's headers or the body's end; 0 = unknown."""
    counts = []
    for name, pattern in ((b"x-prompt-tokens", _IN), (b"x-generated-tokens", _OUT)):
        value = head.get(name)
        known = value is not None and value.isdigit() and len(value) < 10
        counts.append(int(value) if known and value is not None else _last(pattern, body_tail[-_TAIL:]))
    return counts[0], counts[1]


def json_timings(head: ResponseHead, generated: int) -> tuple[float, float] | None:
    """(TTFT within the engine, TPOT) in seconds from TGI's x- headers; None when they are not there.

    TGI states the mean inference time a token with the prefill in it and no time of the first token. So the first token
    is placed one mean step after the start of the inference: exact for one token, else too early by up to one prefill.
    """
    total, inference = _milliseconds(head, b"x-total-time"), _milliseconds(head, b"x-inference-time")
    if total is None or inference is None or generated < 1:
        return None
    step = inference / generated
    return max(total - inference, 0.0) + step, step


_STATUS_BY_TYPE = {
    "overloaded": 429,
    "validation": 422,
    "template_error": 422,
    "missing_template_variable": 422,
    "tool_error": 422,
    "generation": 424,
    "incomplete_generation": 500,
    "incomplete_generation_stream": 500,
}
# OpenAI's routes of TGI 3.3.7 state 422 for every error of a stream, so the wording has to decide.
_TYPE_BY_WORDING = (
    ("Model is overloaded", "overloaded"),
    ("Request failed during generation", "generation"),
    ("Incomplete generation stream", "incomplete_generation_stream"),
    ("Incomplete generation", "incomplete_generation"),
    ("Input validation error", "validation"),
    ("Template error", "template_error"),
    ("Tool error", "tool_error"),
)


def stream_error(event: bytes, route: Route) -> Failure | None:
    """The error that an event of a stream stands for, None for other events. `event` may hold several `data:` lines."""
    if b'"error"' not in event:
        return None
    payload = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
    try:
        document: Any = json.loads(payload)
    except ValueError:
        return None
    error = document.get("error") if isinstance(document, dict) else None
    if not error:
        return None
    if isinstance(error, dict):
        message, kind = str(error.get("message", "")), str(error.get("type") or "")
        stated = error.get("http_status_code")
    else:
        message, kind, stated = str(error), str(document.get("error_type") or ""), None
    if kind not in _STATUS_BY_TYPE:
        kind = next((name for words, name in _TYPE_BY_WORDING if message.startswith(words)), kind or "generation")
    status = _STATUS_BY_TYPE.get(kind) or (stated if isinstance(stated, int) and 400 <= stated < 600 else 500)
    retry = 1 if status == 429 else None
    return Failure(status, kind, message, retry_after=retry, raw=None if route.openai else payload)
