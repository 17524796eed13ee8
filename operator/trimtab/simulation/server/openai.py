"""The OpenAI routes as TGI 3.3.7 answers them (router/src/chat.rs, router/src/lib.rs, router/src/server.rs)."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from trimtab.simulation.server.driver import Job
from trimtab.simulation.server.errors import ApiError, BodyError, tool_error
from trimtab.simulation.server.events import ChatEvents, CompletionEvents, Dialect, chat_reason, usage
from trimtab.simulation.server.exchange import FINGERPRINT, Service, generate, read_json, stream, timing_headers
from trimtab.simulation.server.parameters import Generation, read_native, validate
from trimtab.simulation.server.text import chat_text, spans

_WRONG = "Failed to deserialize the JSON body into the target type: "


async def chat_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await chat(service, request, await read_json(request))


async def completions_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await completions(service, request, await read_json(request))


async def chat_tokenize_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /chat_tokenize."""
    service.metrics.add("tgi_request_count")
    body = _chat_body(await read_json(request))
    text = chat_text(body["messages"], body.get("tools"))
    found = [{"id": i, "text": t, "start": a, "stop": b} for i, t, a, b in spans(text)]
    return web.json_response({"tokenize_response": found, "templated_text": text})


async def chat(service: Service, request: web.Request, body: Any) -> web.StreamResponse:
    """A chat completion. One request counts twice in tgi_request_count, as in TGI."""
    service.metrics.add("tgi_request_count", by=2)
    body = _chat_body(body)
    text, tool = chat_text(body["messages"], _usable_tools(body)), _tool(body)
    parameters = _typed(_chat_parameters(body, tool), body)
    shown, created = service.launched.model_id, int(time.time())
    if body.get("stream"):
        options = body.get("stream_options") or {}
        name = tool["function"]["name"] if tool else None
        events = ChatEvents(shown, FINGERPRINT, created, usage=bool(options.get("include_usage")), tool=name)

        def prepare() -> tuple[Generation, Dialect]:
            return validate(text, parameters, service.limits, stream=True), events

        return await stream(service, request, len(text), prepare, events)
    started = asyncio.get_running_loop().time()
    jobs = await generate(service, validate(text, parameters, service.limits, stream=False))
    jobs[0].collect()
    document = {
        "object": "chat.completion",
        "id": "",
        "created": created,
        "model": shown,
        "system_fingerprint": FINGERPRINT,
        "choices": [_chat_choice(jobs[0], tool)],
        "usage": usage(jobs[0]),
    }
    return web.json_response(document, headers=timing_headers(service, jobs, started))


def _typed(parameters: dict[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the right types; a model name other than `tgi` asks for an adapter."""
    model = body.get("model") or "tgi"
    if model != "tgi":
        parameters = {**parameters, "adapter_id": str(model)}
    _, typed = read_native({"inputs": "", "parameters": parameters})
    return typed or {}


def _chat_choice(job: Job, tool: Mapping[str, Any] | None) -> dict[str, Any]:
    text = job.answer.generated_text()
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tool is not None:
        function = {"description": None, "name": tool["function"]["name"], "arguments": text}
        message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": chat_reason(job)}


def _chat_body(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise BodyError(422, f"{_WRONG}invalid type, expected struct ChatRequest")
    if "messages" not in body:
        raise BodyError(422, f"{_WRONG}missing field `messages`")
    messages = body["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BodyError(422, f"{_WRONG}messages: invalid type, expected a sequence")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise BodyError(422, f"{_WRONG}messages[{index}]: missing field `role`")
    return body


def _usable_tools(body: Mapping[str, Any]) -> list[Any] | None:
    return body.get("tools") if body.get("tools") and body.get("tool_choice") != "none" else None


def _tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function that the answer calls; None: it is text. Without a forced choice the first one is called."""
    tools = _usable_tools(body)
    if not tools:
        return None
    if body.get("response_format") is not None:
        raise tool_error("Grammar and tools are mutually exclusive")
    choice = body.get("tool_choice")
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if name is None and isinstance(choice, str) and choice not in ("auto", "required"):
        name = choice
    for tool in tools:
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict) and "name" in tool["function"]:
            if name in (None, tool["function"]["name"]):
                found: Mapping[str, Any] = tool
                return found
        else:
            raise BodyError(422, f"{_WRONG}tools: missing field `function`")
    raise tool_error(f"Tool with name {name} not found")


def _chat_parameters(body: Mapping[str, Any], tool: Mapping[str, Any] | None) -> dict[str, Any]:
    """OpenAI's parameters as TGI maps them; `n` and `logit_bias` are ignored."""
    temperature = body.get("temperature")
    greedy = temperature == 0
    presence = body.get("presence_penalty")
    stop = body.get("stop")
    limit = body.get("max_tokens")
    parameters = {
        "do_sample": not greedy,
        "temperature": None if greedy else temperature,
        "top_p": body.get("top_p"),
        "frequency_penalty": body.get("frequency_penalty"),
        "repetition_penalty": None if presence is None else presence + 2.0,
        "max_new_tokens": body.get("max_completion_tokens") if limit is None else limit,
        "stop": [stop] if isinstance(stop, str) else stop or [],
        "seed": body.get("seed"),
        "details": True,
        "top_n_tokens": body.get("top_logprobs") if body.get("logprobs") else None,
        "grammar": _grammar(body, tool),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _grammar(body: Mapping[str, Any], tool: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if tool is not None:
        schema = tool["function"].get("parameters") or tool["function"].get("arguments") or {}
        return {"type": "json", "value": {"properties": {}, **schema}}
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or wanted.get("type") == "text":
        return None
    value = (
        wanted.get("value") if wanted.get("type") != "json_schema" else wanted.get("json_schema", wanted.get("value"))
    )
    if wanted.get("type") == "json_object" and value is None:
        value = {"properties": {}}
    return {"type": wanted.get("type"), "value": value}


async def completions(service: Service, request: web.Request, body: Any) -> web.StreamResponse:
    """A text completion, of several prompts at once if they are few."""
    service.metrics.add("tgi_request_count")
    prompts = _prompts(body)
    _check_prompts(service, body, prompts)
    service.metrics.add("tgi_request_count", by=len(prompts))
    parameters = _typed(_completion_parameters(body), body)
    shown, created = service.launched.model_id, int(time.time())
    if body.get("stream"):
        events = CompletionEvents(shown, FINGERPRINT, created)

        def prepare() -> tuple[Generation, Dialect]:
            return validate(prompts[0], parameters, service.limits, stream=True), events

        return await stream(service, request, len(prompts[0]), prepare, events)
    started = asyncio.get_running_loop().time()
    checked = [validate(prompt, parameters, service.limits, stream=False) for prompt in prompts]
    answers = await asyncio.gather(*(generate(service, one) for one in checked))
    jobs = [answer[0] for answer in answers]
    for job in jobs:
        job.collect()
    counts = [usage(job) for job in jobs]
    document = {
        "object": "text_completion",
        "id": "",
        "created": created,
        "model": shown,
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {"index": index, "text": job.answer.generated_text(), "logprobs": None, "finish_reason": job.finish_reason}
            for index, job in enumerate(jobs)
        ],
        "usage": {name: sum(count[name] for count in counts) for name in counts[0]},
    }
    return web.json_response(document, headers=timing_headers(service, jobs, started))


def _check_prompts(service: Service, body: Mapping[str, Any], prompts: list[str]) -> None:
    if body.get("suffix") is not None:
        message = "Suffix is not supported and can be achieved by preprocessing the prompt."
        raise ApiError(422, "suffix not supported", message, "validation")
    most = service.limits.max_client_batch_size
    if len(prompts) > most:
        message = f"Number of prompts exceeds the maximum allowed batch size of {most}"
        raise ApiError(422, "batch size exceeded", message, "validation")


def _prompts(body: Any) -> list[str]:
    if not isinstance(body, dict):
        raise BodyError(422, f"{_WRONG}invalid type, expected struct CompletionRequest")
    if "prompt" not in body:
        raise BodyError(422, f"{_WRONG}missing field `prompt`")
    prompt = body["prompt"]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise BodyError(422, f"{_WRONG}prompt: data did not match any variant of untagged enum Prompt")
    return prompts


def _completion_parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    temperature = body.get("temperature")
    stop = body.get("stop")
    parameters = {
        "do_sample": temperature is None or temperature > 0,
        "temperature": None if temperature == 0 else temperature,
        "top_p": body.get("top_p"),
        "repetition_penalty": body.get("repetition_penalty"),
        "frequency_penalty": body.get("frequency_penalty"),
        "max_new_tokens": body.get("max_tokens"),
        "stop": [stop] if isinstance(stop, str) else stop or [],
        "seed": body.get("seed"),
        "details": True,
    }
    return {name: value for name, value in parameters.items() if value is not None}
