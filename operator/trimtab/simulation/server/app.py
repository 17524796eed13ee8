"""Routes of the simulated server and its life: boot, serving, drain."""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from trimtab.simulation.command import Arguments
from trimtab.simulation.engine import Engine
from trimtab.simulation.launch import Launched
from trimtab.simulation.server import native, openai
from trimtab.simulation.server.driver import Driver
from trimtab.simulation.server.exchange import VERSION, Service, answering
from trimtab.simulation.server.metrics import Metrics
from trimtab.simulation.server.parameters import Limits

SERVICE = web.AppKey("service", Service)
_RUNNING = web.AppKey("running", asyncio.Task)

_GENERATING = {
    "/": native.root_route,
    "/generate": native.generate_route,
    "/generate_stream": native.generate_stream_route,
    "/v1/chat/completions": openai.chat_route,
    "/v1/completions": openai.completions_route,
    "/invocations": native.invocations_route,
    "/vertex": native.vertex_route,
    "/tokenize": native.tokenize_route,
    "/chat_tokenize": openai.chat_tokenize_route,
}
_GUARDED = frozenset(_GENERATING) - {"/chat_tokenize"}
"""Routes that want the API key."""

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(launched: Launched, arguments: Arguments, env: Mapping[str, str]) -> web.Application:
    """The server of a warmed-up engine; its engine runs while the application does."""
    app = web.Application(client_max_size=arguments.given("--payload-limit", 2_000_000), middlewares=[_check_key])

    async def run(app: web.Application) -> None:
        app[SERVICE] = service = _service(launched, arguments, env)
        for path, handler in _GENERATING.items():
            handlers[path] = answering(service, handler)
        app[_RUNNING] = asyncio.create_task(service.driver.run(), name="engine")

    async def stop(app: web.Application) -> None:
        app[_RUNNING].cancel()
        await asyncio.gather(app[_RUNNING], return_exceptions=True)

    handlers: dict[str, Next] = {}

    async def dispatch(request: web.Request) -> web.StreamResponse:
        return await handlers[request.path](request)

    origins = arguments.text("--cors-allow-origin")

    async def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if not origins:
            response.headers["Access-Control-Allow-Origin"] = "*"
        elif origin is not None and origin in origins.split(","):
            response.headers["Access-Control-Allow-Origin"] = origin

    app.on_response_prepare.append(allow_origin)
    app.on_startup.append(run)
    app.on_cleanup.append(stop)
    for path in _GENERATING:
        app.router.add_post(path, dispatch)
    for path in ("/health", "/ping", "/"):
        app.router.add_get(path, _health)
    app.router.add_get("/info", _info)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/v1/models", _models)
    return app


def _service(launched: Launched, arguments: Arguments, env: Mapping[str, str]) -> Service:
    settings, crash = launched.settings, env.get("TRIMTAB_SIM_CRASH_AFTER_PASSES")
    metrics = Metrics(settings.max_input_tokens, settings.max_total_tokens)
    return Service(
        launched=launched,
        limits=Limits(
            max_best_of=arguments.given("--max-best-of", 2),
            max_stop_sequences=arguments.given("--max-stop-sequences", 4),
            max_top_n_tokens=arguments.given("--max-top-n-tokens", 5),
            max_input_tokens=settings.max_input_tokens,
            max_total_tokens=settings.max_total_tokens,
            max_client_batch_size=arguments.given("--max-client-batch-size", 4),
            grammar=not arguments.on("--disable-grammar-support"),
        ),
        driver=Driver(Engine(settings, launched.times), metrics, int(crash) if crash else None),
        metrics=metrics,
        compute_type=env.get("COMPUTE_TYPE", "gpu+optimized"),
        draw_eos=env.get("TRIMTAB_SIM_EOS") == "1",
        api_key=arguments.text("--api-key"),
        prefill_logprobs=arguments.on("--enable-prefill-logprobs"),
        workers=settings.validation_workers,
    )


@web.middleware
async def _check_key(request: web.Request, handler: Next) -> web.StreamResponse:
    key = request.app[SERVICE].api_key
    if key is not None and request.method == "POST" and request.path in _GUARDED:
        given = request.headers.get("Authorization", "").lower()
        if not secrets.compare_digest(given.encode(), f"bearer {key}".lower().encode()):
            return web.Response(status=401)
    return await handler(request)


async def _health(request: web.Request) -> web.Response:
    """Healthy; the answer waits for the running forward pass, as the shard's does."""
    await request.app[SERVICE].driver.pass_over()
    return web.Response()


async def _info(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    settings, limits = service.launched.settings, service.limits
    return web.json_response(
        {
            "model_id": service.launched.model_id,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_best_of": limits.max_best_of,
            "max_stop_sequences": limits.max_stop_sequences,
            "max_input_tokens": settings.max_input_tokens,
            "max_total_tokens": settings.max_total_tokens,
            "validation_workers": service.workers,
            "max_client_batch_size": limits.max_client_batch_size,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": os.environ.get("GIT_SHA", "simulated"),
            "docker_label": os.environ.get("DOCKER_LABEL"),
        }
    )


async def _metrics(request: web.Request) -> web.Response:
    text = request.app[SERVICE].metrics.render()
    return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})


async def _models(request: web.Request) -> web.Response:
    model = request.app[SERVICE].launched.model_id
    entry = {"id": model, "object": "model", "created": 0, "owned_by": model}
    return web.json_response({"object": "list", "data": [entry]})
