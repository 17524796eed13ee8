"""From a finished answer to a stored entry: only what is successful, complete and free of errors is kept.

An answer is stored byte for byte; of a stream only the comments (keep-alives) are left out. Shapes are those of TGI
3.3.7: native streams end with an event that carries `generated_text` and have no `[DONE]`; OpenAI's end with `[DONE]`;
an error after the head of a stream is an event of its own, which must never be stored.
"""

from dataclasses import dataclass, field
from typing import Any

import jiter

from trimtab.sidecar.interfaces import Call, Entry, Headers, Rejected, Route

_KEPT_HEADERS = frozenset(
    {
        b"content-type",
        b"x-compute-type",
        b"x-compute-characters",
        b"x-prompt-tokens",
        b"x-generated-tokens",
        b"x-accel-buffering",
    }
)
_DONE = b"[DONE]"


@dataclass(slots=True)
class _Tokens:
    prompt: int = 0
    generated: int = 0

    def take(self, prompt: Any, generated: Any) -> None:
        """Believe counts that are counts."""
        if type(prompt) is int and prompt > 0:
            self.prompt = prompt
        if type(generated) is int and generated > 0:
            self.generated = generated


def make_entry(call: Call, status: int, headers: Headers, body: bytes, *, now: float, ttl: float) -> Entry | Rejected:
    """See `EntryMaker`. `body` is the whole answer without transfer coding."""
    refused = _refused_by_head(call, status, headers)
    if refused is not None:
        return Rejected(refused)
    tokens = _Tokens(_header_count(headers, b"x-prompt-tokens"), _header_count(headers, b"x-generated-tokens"))
    if call.stream:
        stored = _stream(call, body, tokens)
    else:
        reason = _document_fault(call, body, tokens)
        stored = body if reason is None else Rejected(reason)
    if isinstance(stored, Rejected):
        return stored
    kept = tuple((name, value) for name, value in headers if name in _KEPT_HEADERS)
    return Entry(stored, kept, now, ttl, call.stream, tokens.prompt, tokens.generated)


def _refused_by_head(call: Call, status: int, headers: Headers) -> str | None:
    if status != 200:
        return "status"
    kind = b""
    for name, value in headers:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.lower() != b"identity":
            return "encoding"
        elif name == b"set-cookie" or (name == b"cache-control" and _forbids(value)):
            return "upstream"
    expected = b"text/event-stream" if call.stream else b"application/json"
    return None if kind == expected else "representation"


def _forbids(cache_control: bytes) -> bool:
    # `no-cache`, which servers send with streams to stop buffering, does not forbid storing (RFC 9111, 5.2.2.4).
    directives = {part.strip().partition(b"=")[0].lower() for part in cache_control.split(b",")}
    return not directives.isdisjoint((b"no-store", b"private"))


def _header_count(headers: Headers, wanted: bytes) -> int:
    for name, value in headers:
        if name == wanted and value.isdigit() and len(value) < 12:
            return int(value)
    return 0


def _parsed(data: bytes) -> Any:
    try:
        return jiter.from_json(data, cache_mode="keys")
    except ValueError:
        return None


def _document_fault(call: Call, body: bytes, tokens: _Tokens) -> str | None:
    document = _parsed(body)
    if call.route is Route.COMPAT:
        if type(document) is not list or len(document) != 1:
            return "error" if type(document) is dict and "error" in document else "incomplete"
        document = document[0]
    if type(document) is not dict:
        return "incomplete"
    if document.get("error") is not None:
        return "error"
    return _choices_fault(call, document, tokens) if call.route.openai else _native_fault(document, tokens)


def _native_fault(document: dict[str, Any], tokens: _Tokens) -> str | None:
    if type(document.get("generated_text")) is not str:
        return "incomplete"
    details = document.get("details")
    if type(details) is dict:
        if not _ended(details.get("finish_reason")):
            return "incomplete"
        prefill = details.get("prefill")
        tokens.take(len(prefill) if type(prefill) is list else 0, details.get("generated_tokens"))
    return None


def _choices_fault(call: Call, document: dict[str, Any], tokens: _Tokens) -> str | None:
    choices = document.get("choices")
    if type(choices) is not list or len(choices) != call.units:
        return "incomplete"
    if not all(type(choice) is dict and _ended(choice.get("finish_reason")) for choice in choices):
        return "incomplete"
    _take_usage(document.get("usage"), tokens)
    return None


def _take_usage(usage: Any, tokens: _Tokens) -> None:
    if type(usage) is dict:
        tokens.take(usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _ended(reason: Any) -> bool:
    return type(reason) is str and reason != ""


@dataclass(slots=True)
class _Progress:
    """What a stream has brought so far."""

    call: Call
    tokens: _Tokens
    over: bool = False
    finished: set[int] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    events: int = 0

    def take(self, data: bytes) -> str | None:
        """One event's data; the reason why the stream cannot be stored, or None."""
        if self.over:
            return "framing"
        if data == _DONE:
            self.over = True
            return None if self.call.route.openai else "framing"
        event = _parsed(data)
        if type(event) is not dict:
            return "framing"
        if event.get("error") is not None:
            return "error_event"
        self.events += 1
        return self._chunk(event) if self.call.route.openai else self._token(event)

    def _chunk(self, event: dict[str, Any]) -> str | None:
        choices = event.get("choices")
        if type(choices) is not list:
            return "framing"
        for choice in choices:
            if type(choice) is not dict or type(choice.get("index")) is not int:
                return "framing"
            self.seen.add(choice["index"])
            if _ended(choice.get("finish_reason")):
                self.finished.add(choice["index"])
        _take_usage(event.get("usage"), self.tokens)
        return None

    def _token(self, event: dict[str, Any]) -> str | None:
        if type(event.get("token")) is not dict:
            return "framing"
        if event.get("generated_text") is None:
            return None
        self.over = True
        details = event.get("details")
        if type(details) is dict:
            self.tokens.take(details.get("input_length"), details.get("generated_tokens"))
        return None

    def complete(self) -> bool:
        """Whether everything that was asked for has come."""
        if not self.over:
            return False
        if not self.call.route.openai:
            self.tokens.take(0, self.tokens.generated or self.events)
            return True
        return self.seen == self.finished and len(self.finished) == self.call.units


def _stream(call: Call, body: bytes, tokens: _Tokens) -> bytes | Rejected:
    """The events of `body` without comments, or why it is not stored."""
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not body.endswith(b"\n\n"):
        return Rejected("incomplete")
    progress = _Progress(call, tokens)
    kept: list[bytes] = []
    for block in body[:-2].split(b"\n\n"):
        event, data = _event(block)
        if data is None:
            continue
        fault = progress.take(data)
        if fault is not None:
            return Rejected(fault)
        kept.append(event)
    if not progress.complete():
        return Rejected("incomplete")
    kept.append(b"")
    return b"\n\n".join(kept)


def _event(block: bytes) -> tuple[bytes, bytes | None]:
    """A block without its comments, and its data (None when it has none: nothing to dispatch)."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block, block[6:]
    lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
    values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    return b"\n".join(lines), b"\n".join(values) if values else None
