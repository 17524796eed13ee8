"""TGI's own routes: /, /generate, /generate_stream, /invocations, /vertex, /tokenize."""

import asyncio
import json
from typing import Any

from aiohttp import web

from trimtab.simulation.server import openai
from trimtab.simulation.server.driver import Job
from trimtab.simulation.server.errors import ApiError, BodyError
from trimtab.simulation.server.events import Dialect, NativeEvents, token_json
from trimtab.simulation.server.exchange import Service, generate, read_json, stream, timing_headers
from trimtab.simulation.server.parameters import Generation, read_native, validate
from trimtab.simulation.server.text import Token, pieces, spans, token_id


def _raw(text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(text=text, content_type="application/json", headers=headers)


async def generate_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /generate."""
    inputs, parameters = read_native(await read_json(request))
    return await _whole(service, inputs, parameters, full_text=False, in_list=False)


async def generate_stream_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /generate_stream."""
    inputs, parameters = read_native(await read_json(request))
    return await _streamed(service, request, inputs, parameters, full_text=False)


async def root_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /: as /generate with `stream` in the body; the whole text by default, the answer in a list."""
    return await _compatible(service, request, await read_json(request))


async def invocations_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /invocations: SageMaker sends any of the three shapes here."""
    body = await read_json(request)
    if isinstance(body, dict) and "messages" in body:
        return await openai.chat(service, request, body)
    if isinstance(body, dict) and "prompt" in body:
        return await openai.completions(service, request, body)
    return await _compatible(service, request, body)


async def _compatible(service: Service, request: web.Request, body: Any) -> web.StreamResponse:
    inputs, parameters = read_native(body)
    streaming = body.get("stream", False)
    if not isinstance(streaming, bool):
        raise BodyError(422, "Failed to deserialize the JSON body into the target type: stream: expected a boolean")
    if streaming:
        return await _streamed(service, request, inputs, parameters, full_text=True)
    return await _whole(service, inputs, parameters, full_text=True, in_list=True)


async def _whole(
    service: Service, inputs: str, parameters: dict[str, Any] | None, *, full_text: bool, in_list: bool
) -> web.Response:
    service.metrics.add("tgi_request_count")
    started = asyncio.get_running_loop().time()
    checked = validate(inputs, parameters, service.limits, stream=False)
    jobs = await generate(service, checked)
    document = generate_response(service, jobs, full_text=full_text)
    return _raw(f"[{document}]" if in_list else document, timing_headers(service, jobs, started))


async def _streamed(
    service: Service, request: web.Request, inputs: str, parameters: dict[str, Any] | None, *, full_text: bool
) -> web.StreamResponse:
    service.metrics.add("tgi_request_count")
    full = full_text

    def prepare() -> tuple[Generation, Dialect]:
        checked = validate(inputs, parameters, service.limits, stream=True)
        wanted = full if checked.return_full_text is None else checked.return_full_text
        return checked, NativeEvents(wanted, len(checked.parts))

    return await stream(service, request, len(inputs), prepare, NativeEvents(full, 0))


def generate_response(service: Service, jobs: list[Job], *, full_text: bool) -> str:
    """A GenerateResponse as JSON; the longest of several answers comes first, as it has the best log-probability."""
    job = jobs[0]
    request = job.request
    wanted = full_text if request.return_full_text is None else request.return_full_text
    bodies = [_sequence(service, each) for each in jobs]
    text = json.dumps(request.inputs + job.answer.generated_text() if wanted else job.answer.generated_text())
    if not request.details:
        return f'{{"generated_text":{text}}}'
    others = ""
    if len(jobs) > 1:
        items = ",".join(
            f'{{"generated_text":{json.dumps(each.answer.generated_text())},{body}}}'
            for each, body in zip(jobs[1:], bodies[1:], strict=True)
        )
        others = f',"best_of_sequences":[{items}]'
    return f'{{"generated_text":{text},"details":{{{bodies[0]}{others}}}}}'


def _sequence(service: Service, job: Job) -> str:
    tokens = job.collect()
    seed = "null" if job.plan.seed is None else job.plan.seed
    prefill = ""
    if job.request.prompt_details and service.prefill_logprobs:
        prefill = ",".join(
            f'{{"id":{token_id(piece)},"text":{json.dumps(piece)},"logprob":{"null" if first else "-1.0"}}}'
            for first, piece in ((index == 0, piece) for index, piece in enumerate(job.request.parts))
        )
    listed = ",".join(token_json(token) for token in tokens)
    top = f',"top_tokens":[{",".join(_top(token) for token in tokens)}]' if job.request.top_n_tokens else ""
    return (
        f'"finish_reason":"{job.finish_reason}","generated_tokens":{len(tokens)},"seed":{seed},'
        f'"prefill":[{prefill}],"tokens":[{listed}]{top}'
    )


def _top(token: Token) -> str:
    return f"[{token_json(token)}]"


async def vertex_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /vertex: every failure is a 500."""
    body = await read_json(request)
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list):
        raise BodyError(422, "Failed to deserialize the JSON body into the target type: missing field `instances`")
    service.metrics.add("tgi_request_count")
    predictions = []
    for instance in instances:
        inputs, parameters = read_native(instance)
        service.metrics.add("tgi_request_count")
        try:
            jobs = await generate(service, validate(inputs, parameters, service.limits, stream=False))
        except ApiError as error:
            raise ApiError(500, error.kind, error.message, error.cause) from None
        jobs[0].collect()
        predictions.append(jobs[0].answer.generated_text())
    return web.json_response({"predictions": predictions})


async def tokenize_route(service: Service, request: web.Request) -> web.StreamResponse:
    """POST /tokenize."""
    inputs, parameters = read_native(await read_json(request))
    truncate = (parameters or {}).get("truncate")
    found = list(spans(inputs))
    if truncate is not None and len(pieces(inputs)) > truncate:
        found = found[-truncate:]
    return web.json_response([{"id": i, "text": t, "start": a, "stop": b} for i, t, a, b in found])
