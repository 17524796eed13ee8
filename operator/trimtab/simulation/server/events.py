"""Server-sent events in TGI's three dialects, written to the connection without a task switch for each token."""

import asyncio
import json
from typing import Any, Protocol

from aiohttp import web

from trimtab.simulation.server.driver import Job
from trimtab.simulation.server.errors import ApiError
from trimtab.simulation.server.text import Token

DONE = "data: [DONE]\n\n"


class Channel:
    """The body of a prepared streaming response."""

    def __init__(self, request: web.Request, chunked: bool) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        self._transport: asyncio.Transport = transport
        self._chunked = chunked
        self.writes = 0
        """Events and comments so far."""

    @property
    def closed(self) -> bool:
        """Whether the client is gone."""
        return self._transport.is_closing()

    def write(self, text: str) -> None:
        """Send at once; the answers are short enough to be buffered whole when the client is slow."""
        if self._transport.is_closing():
            return
        self.writes += 1
        data = text.encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)


class Dialect(Protocol):
    """Turns tokens into events."""

    def token(self, job: Job, token: Token) -> str:
        """The event or events for one token."""
        ...

    def end(self, job: Job) -> str:
        """What follows the last token."""
        ...

    def failure(self, error: ApiError) -> str:
        """An error after the response has begun."""
        ...


def _event(value: Any) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


def token_json(token: Token) -> str:
    """A token as TGI writes it."""
    special = "true" if token.special else "false"
    return f'{{"id":{token.number},"text":{json.dumps(token.text)},"logprob":{token.logprob},"special":{special}}}'


class NativeEvents:
    """/generate_stream."""

    def __init__(self, return_full_text: bool, input_length: int) -> None:
        self._full = return_full_text
        self._input_length = input_length

    def token(self, job: Job, token: Token) -> str:
        """See Dialect."""
        text, details = "null", "null"
        if job.last_token:
            generated = job.answer.generated_text()
            text = json.dumps(job.request.inputs + generated if self._full else generated)
            seed = "null" if job.plan.seed is None else job.plan.seed
            details = (
                f'{{"finish_reason":"{job.finish_reason}","generated_tokens":{job.sent},"seed":{seed},'
                f'"input_length":{self._input_length}}}'
            )
        top = f',"top_tokens":[{token_json(token)}]' if job.request.top_n_tokens else ""
        # Words of the vocabulary need no escaping; everything else takes the slow way.
        shown = (
            f'{{"id":{token.number},"text":"{token.text}","logprob":{token.logprob},"special":false}}'
            if token.number < 1124 and not job.plan.fixed
            else token_json(token)
        )
        return f'data: {{"index":{job.sent},"token":{shown}{top},"generated_text":{text},"details":{details}}}\n\n'

    def end(self, job: Job) -> str:
        """See Dialect."""
        return ""

    def failure(self, error: ApiError) -> str:
        """See Dialect."""
        return _event(error.body())


class OpenAiEvents:
    """Errors as both OpenAI routes stream them: always 422."""

    def failure(self, error: ApiError) -> str:
        """See Dialect."""
        return _event({"error": {"message": error.message, "http_status_code": 422}}) + DONE


class ChatEvents(OpenAiEvents):
    """/v1/chat/completions."""

    def __init__(self, model: str, fingerprint: str, created: int, *, usage: bool, tool: str | None) -> None:
        self._head = {
            "object": "chat.completion.chunk",
            "id": "",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._usage = usage
        self._tool = tool
        opening = json.dumps(self._head, separators=(",", ":"))[:-1]
        self._before = f'data: {opening},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"'
        self._after = '"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'

    def token(self, job: Job, token: Token) -> str:
        """See Dialect."""
        if not job.last_token and self._tool is None and not job.plan.fixed:
            return f"{self._before}{token.text}{self._after}"
        reason = chat_reason(job) if job.last_token else None
        text = "" if token.special else token.text
        delta: dict[str, Any] = {"role": "assistant", "content": text}
        if self._tool is not None:
            call = {"index": 0, "id": "0", "type": "function", "function": {"name": None, "arguments": text}}
            if job.sent == 1:
                call["function"] = {"name": self._tool, "arguments": text}
            delta = {"role": "assistant", "tool_calls": [call]}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self._head, "choices": [choice], "usage": None})

    def end(self, job: Job) -> str:
        """See Dialect."""
        extra = _event({**self._head, "choices": [], "usage": usage(job)}) if self._usage else ""
        return extra + DONE


class CompletionEvents(OpenAiEvents):
    """/v1/completions."""

    def __init__(self, model: str, fingerprint: str, created: int, index: int = 0) -> None:
        self._head = {
            "object": "text_completion",
            "id": "",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._index = index
        opening = json.dumps(self._head, separators=(",", ":"))[:-1]
        self._before = f'data: {opening},"choices":[{{"index":{index},"text":"'
        self._after = '","logprobs":null,"finish_reason":""}]}\n\n'

    def token(self, job: Job, token: Token) -> str:
        """See Dialect."""
        if not job.last_token:
            return f"{self._before}{token.text}{self._after}"
        text = "" if token.special else token.text
        choice = {"index": self._index, "text": text, "logprobs": None, "finish_reason": job.finish_reason}
        return _event({**self._head, "choices": [choice], "usage": usage(job)})

    def end(self, job: Job) -> str:
        """See Dialect."""
        return DONE


def usage(job: Job) -> dict[str, int]:
    """Token counts of one generation."""
    prompt, completion = len(job.request.parts), job.sent
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat_reason(job: Job) -> str:
    """OpenAI's word for the end of an answer."""
    return "stop" if job.finish_reason == "eos_token" else job.finish_reason
