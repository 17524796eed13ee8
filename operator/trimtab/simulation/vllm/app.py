"""Routes of the simulated vLLM server."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from trimtab.engines.vllm_facts import VERSION
from trimtab.simulation.server.answers import plan_answer
from trimtab.simulation.server.events import Channel
from trimtab.simulation.vllm.driver import Driver, Job, OnToken
from trimtab.simulation.vllm.launch import Launched
from trimtab.simulation.vllm.metrics import Metrics
from trimtab.simulation.vllm.protocol import Answering, ApiError, Ask, bad_request, read_request
from trimtab.simulation.vllm.scheduler import Scheduler

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Service:
    """The running server, as handlers see it."""

    launched: Launched
    driver: Driver
    metrics: Metrics
    draw_eos: bool


SERVICE = web.AppKey("service", Service)
_RUNNING = web.AppKey("running", asyncio.Task)


def make_app(launched: Launched, env: Mapping[str, str]) -> web.Application:
    """The server of a warmed-up engine; its engine runs while the application does."""
    key = launched.arguments.text("--api-key")
    app = web.Application(client_max_size=2**26, middlewares=[_guard(key)])

    async def run(app: web.Application) -> None:
        metrics = Metrics(launched.served_name, launched.settings.max_model_len)
        driver = Driver(Scheduler(launched.settings, launched.times), metrics)
        app[SERVICE] = Service(launched, driver, metrics, env.get("TRIMTAB_SIM_EOS") == "1")
        app[_RUNNING] = asyncio.create_task(driver.run(), name="engine")

    async def stop(app: web.Application) -> None:
        app[_RUNNING].cancel()
        await asyncio.gather(app[_RUNNING], return_exceptions=True)

    app.on_startup.append(run)
    app.on_cleanup.append(stop)
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_post("/v1/completions", _completions)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _health)
    app.router.add_get("/ping", _health)
    app.router.add_get("/version", _version)
    if not launched.arguments.on("--disable-log-stats"):
        app.router.add_get("/metrics", _metrics)
    return app


def _guard(key: str | None) -> Any:
    @web.middleware
    async def check(request: web.Request, handler: Next) -> web.StreamResponse:
        if key is not None and request.path.startswith("/v1"):
            given = request.headers.get("Authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
                return web.json_response({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except ApiError as error:
            return web.json_response(error.body(), status=error.status)

    return check


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _answer(request, chat=True)


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, chat=False)


async def _answer(request: web.Request, *, chat: bool) -> web.StreamResponse:
    service = request.app[SERVICE]
    try:
        body = json.loads(await request.read())
    except ValueError as wrong:
        raise bad_request(
            f"[{{'type': 'json_invalid', 'loc': ('body',), 'msg': 'JSON decode error: {wrong}'}}]"
        ) from None
    longest, name = service.launched.settings.max_model_len, service.launched.served_name
    ask = read_request(body, chat=chat, served_name=name, max_model_len=longest)
    answering = Answering(ask, name)
    if ask.stream:
        return await _stream(service, request, ask, answering)
    jobs = _start(service, ask, None)
    await _wait(service, jobs)
    return web.json_response(answering.document(jobs))


def _start(service: Service, ask: Ask, on_token: OnToken | None) -> list[Job]:
    identity = f"{service.launched.model_id} {service.launched.quantization}"
    draw_eos = service.draw_eos and not ask.ignore_eos
    wanted = [generation for generation in ask.generations for _ in range(ask.choices)]
    return [
        service.driver.start(
            index,
            len(generation.parts),
            generation.max_new_tokens,
            plan_answer(generation, identity, draw_eos=draw_eos),
            on_token,
        )
        for index, generation in enumerate(wanted)
    ]


async def _wait(service: Service, jobs: list[Job]) -> None:
    """Until all have ended. Cancelled: the client is gone."""
    try:
        await asyncio.gather(*(job.done for job in jobs))
    finally:
        for job in jobs:
            service.driver.abandon(job)


async def _stream(service: Service, request: web.Request, ask: Ask, answering: Answering) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    chunked = request.version >= (1, 1)
    if chunked:
        response.enable_chunked_encoding()
    await response.prepare(request)
    channel = Channel(request, chunked=chunked)

    def on_token(job: Job, text: str) -> None:
        opening = answering.opening(job.index) if len(job.text) == 1 else ""
        channel.write(opening + answering.token(job, text))

    jobs = _start(service, ask, on_token)
    await _wait(service, jobs)
    channel.write(answering.ending(jobs))
    if not channel.closed:
        await response.write_eof()
    return response


async def _models(request: web.Request) -> web.Response:
    launched = request.app[SERVICE].launched
    entry = {
        "id": launched.served_name,
        "object": "model",
        "created": 0,
        "owned_by": "vllm",
        "root": launched.model_id,
        "parent": None,
        "max_model_len": launched.settings.max_model_len,
        "permission": [],
    }
    return web.json_response({"object": "list", "data": [entry]})


async def _health(request: web.Request) -> web.Response:
    """Healthy as soon as the port is open: the API server answers, whatever the engine is at."""
    return web.Response()


async def _version(request: web.Request) -> web.Response:
    return web.json_response({"version": VERSION})


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[SERVICE].metrics.render()
    return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
