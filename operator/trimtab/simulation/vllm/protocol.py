"""Requests and answers of the OpenAI routes as vLLM 0.11 reads and writes them.

vllm/entrypoints/openai/protocol.py, serving_engine.py, serving_chat.py and serving_completion.py of tag v0.11.0.
"""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.simulation.server.parameters import Generation
from trimtab.simulation.server.text import chat_text, pieces
from trimtab.simulation.vllm.driver import Job

DONE = "data: [DONE]\n\n"
COMPLETION_TOKENS = 16
"""Default length of /v1/completions; chats may fill the context."""
_DECISIVE = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


class ApiError(Exception):
    """An answer with vLLM's error body."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        self.status = status
        self.kind = kind
        self.message = message
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": self.status}}


def bad_request(message: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequestError", message)


@dataclass(frozen=True, slots=True)
class Ask:
    """A valid request: one generation for each prompt and choice."""

    chat: bool
    generations: tuple[Generation, ...]
    choices: int
    """Answers to each prompt (`n`)."""
    stream: bool
    include_usage: bool
    ignore_eos: bool

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(generation.parts) for generation in self.generations)


def read_request(body: Any, *, chat: bool, served_name: str, max_model_len: int) -> Ask:
    """Check a request; raises ApiError."""
    if not isinstance(body, dict):
        raise bad_request("Input should be a valid dictionary or object to extract fields from")
    prompts = _chat_prompts(body) if chat else _prompts(body)
    model = body.get("model")
    if model is not None and model != served_name:
        raise ApiError(404, "NotFoundError", f"The model `{model}` does not exist.")
    choices, wanted = _counts(body, chat=chat)
    options = body.get("stream_options") or {}
    return Ask(
        chat=chat,
        generations=tuple(_generation(body, parts, wanted, max_model_len) for parts in prompts),
        choices=choices,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, Mapping) and bool(options.get("include_usage")),
        ignore_eos=bool(body.get("ignore_eos")),
    )


def _chat_prompts(body: Mapping[str, Any]) -> list[list[str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        kind, text = (
            ("missing", "Field required") if messages is None else ("list_type", "Input should be a valid list")
        )
        raise bad_request(f"[{{'type': '{kind}', 'loc': ('body', 'messages'), 'msg': '{text}'}}]")
    return [pieces(chat_text(messages, body.get("tools")))]


def _prompts(body: Mapping[str, Any]) -> list[list[str]]:
    prompt = body.get("prompt")
    match prompt:
        case str():
            found = [pieces(prompt)]
        case [*parts] if parts and all(isinstance(part, str) for part in parts):
            found = [pieces(part) for part in parts]
        case [*tokens] if tokens and all(isinstance(token, int) for token in tokens):
            found = [[f" {token}" for token in tokens]]
        case _:
            raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.")
    if not all(found):
        raise bad_request("The decoder prompt cannot be empty")
    return found


def _counts(body: Mapping[str, Any], *, chat: bool) -> tuple[int, int | None]:
    """(answers to each prompt, tokens of an answer or None for all that fit)."""
    limit = body.get("max_tokens", None if chat else COMPLETION_TOKENS)
    if chat and body.get("max_completion_tokens") is not None:
        limit = body["max_completion_tokens"]
    choices = body.get("n") or 1
    for name, value in (("max_tokens", limit), ("n", choices)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise bad_request(f"{name} must be at least 1, got {value}.")
    temperature = body.get("temperature")
    if temperature is not None and (not isinstance(temperature, int | float) or temperature < 0):
        raise bad_request(f"temperature must be non-negative, got {temperature}.")
    if choices > 1 and temperature == 0:
        raise bad_request(f"n must be 1 when using greedy sampling, got {choices}.")
    return choices, limit


def _generation(body: Mapping[str, Any], parts: list[str], wanted: int | None, longest: int) -> Generation:
    count = len(parts)
    if count >= longest:
        raise bad_request(
            f"This model's maximum context length is {longest} tokens. However, your request has {count} input tokens. "
            "Please reduce the length of the input messages."
        )
    if wanted is not None and count + wanted > longest:
        raise bad_request(
            f"'max_tokens' or 'max_completion_tokens' is too large: {wanted}. This model's maximum context length is "
            f"{longest} tokens and your request has {count} input tokens ({wanted} > {longest} - {count})."
        )
    stop = body.get("stop") or ()
    return Generation(
        inputs="".join(parts),
        parts=tuple(parts),
        max_new_tokens=longest - count if wanted is None else wanted,
        explicit_max=wanted is not None,
        stops=(stop,) if isinstance(stop, str) else tuple(map(str, stop)),
        details=False,
        prompt_details=False,
        return_full_text=None,
        best_of=1,
        top_n_tokens=0,
        sampled=body.get("temperature") != 0,
        seed=body.get("seed"),
        grammar=_grammar(body.get("response_format")),
        decisive={name: body[name] for name in _DECISIVE if body.get(name) is not None},
    )


def _grammar(wanted: Any) -> Mapping[str, Any] | None:
    if not isinstance(wanted, Mapping) or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    document = wanted.get("json_schema")
    schema = document.get("schema") if isinstance(document, Mapping) else None
    return {"json": schema or {"type": "object", "properties": {}}}


class Answering:
    """Documents and events that answer one request."""

    def __init__(self, ask: Ask, served_name: str) -> None:
        self._ask = ask
        kind = "chat.completion" if ask.chat else "text_completion"
        streamed = "chat.completion.chunk" if ask.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": streamed if ask.stream else kind,
            "created": int(time.time()),
            "model": served_name,
        }

    def opening(self, index: int) -> str:
        """The first event of a choice: a chat names the role before its first token."""
        if not self._ask.chat:
            return ""
        delta = {"role": "assistant", "content": ""}
        return self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def token(self, job: Job, text: str) -> str:
        """The event of one token."""
        # The scheduler is at the end of the step already: a request that has ended there has its last token here.
        reason = job.finish_reason
        choice: dict[str, Any] = {"index": job.index}
        choice |= {"delta": {"content": text}} if self._ask.chat else {"text": text}
        choice |= {"logprobs": None, "finish_reason": reason}
        if reason is not None or not self._ask.chat:
            choice["stop_reason"] = None
        return self._event([choice])

    def ending(self, jobs: list[Job]) -> str:
        """What follows the last token of all choices."""
        usage = self._event([], usage=self._usage(jobs)) if self._ask.include_usage else ""
        return usage + DONE

    def document(self, jobs: list[Job]) -> dict[str, Any]:
        """The whole answer."""
        return {
            **self._head,
            "choices": [self._choice(job) for job in jobs],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": {**self._usage(jobs), "prompt_tokens_details": None},
            "kv_transfer_params": None,
        }

    def _choice(self, job: Job) -> dict[str, Any]:
        text = "".join(job.text)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "tool_calls": [],
            "reasoning_content": None,
        }
        shown: dict[str, Any] = {"message": message} if self._ask.chat else {"text": text}
        return {"index": job.index, **shown, "logprobs": None, "finish_reason": job.finish_reason, "stop_reason": None}

    def _usage(self, jobs: list[Job]) -> dict[str, int]:
        prompt, completion = self._ask.prompt_tokens, sum(job.sequence.generated for job in jobs)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**self._head, 'choices': choices, **more}, separators=(',', ':'))}\n\n"
