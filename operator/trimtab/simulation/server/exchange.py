"""What all generating routes share: reading bodies, running generations, writing answers and errors."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from trimtab.simulation.launch import Launched
from trimtab.simulation.server.answers import plan_answer
from trimtab.simulation.server.driver import Driver, Job
from trimtab.simulation.server.errors import ApiError, BodyError, overloaded
from trimtab.simulation.server.events import Channel, Dialect
from trimtab.simulation.server.metrics import Metrics
from trimtab.simulation.server.parameters import Generation, Limits
from trimtab.simulation.server.text import Token

VERSION = "3.3.6-dev0"
"""What the binaries of 3.3.7 report: the version in Cargo.toml was not raised."""
FINGERPRINT = f"{VERSION}-native"
KEEP_ALIVE_SECONDS = 15.0
"""Without an event for so long, a comment keeps the stream open (axum's default)."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Service:
    """The running server, as handlers see it."""

    launched: Launched
    limits: Limits
    driver: Driver
    metrics: Metrics
    compute_type: str
    draw_eos: bool
    api_key: str | None
    prefill_logprobs: bool
    workers: int

    @property
    def identity(self) -> str:
        """Model and number format."""
        return f"{self.launched.model_id} {self.launched.quantization}"


async def read_json(request: web.Request) -> Any:
    """The body; raises BodyError as the web framework of TGI answers."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyError(413, "Failed to buffer the request body: length limit exceeded") from None
    try:
        return json.loads(raw)
    except (ValueError, UnicodeDecodeError) as wrong:
        raise BodyError(400, f"Failed to parse the request body as JSON: {wrong}") from None


def answering(service: Service, handler: Callable[[Service, web.Request], Awaitable[web.StreamResponse]]) -> Handler:
    """A handler whose errors become TGI's answers."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(service, request)
        except BodyError as refused:
            return web.Response(status=refused.status, text=refused.text)
        except ApiError as error:
            if error.cause is not None:
                service.metrics.add("tgi_request_failure", f'err="{error.cause}"')
            return web.json_response(error.body(), status=error.status)

    return handle


async def generate(service: Service, request: Generation) -> list[Job]:
    """Run a generation to its end, `best_of` times; raises ApiError."""
    if service.driver.engine.permits + request.best_of > service.launched.settings.max_concurrent_requests:
        raise overloaded()
    jobs = [
        service.driver.start(request, plan_answer(request, service.identity, draw_eos=service.draw_eos))
        for _ in range(request.best_of)
    ]
    try:
        await asyncio.gather(*(service.driver.wait(job) for job in jobs))
    except BaseException:
        for job in jobs:
            service.driver.abandon(job)
        raise
    return jobs


def timing_headers(service: Service, jobs: list[Job], started: float) -> dict[str, str]:
    """The x- headers of answers that are not streamed; milliseconds but for x-compute-time."""
    job = jobs[0]
    total, validation, queue, inference = job.seconds()
    generated = sum(each.entry.generated for each in jobs)
    return {
        "x-compute-type": service.compute_type,
        "x-compute-time": str(asyncio.get_running_loop().time() - started),
        "x-compute-characters": str(len(job.request.inputs)),
        "x-total-time": str(int(total * 1000)),
        "x-validation-time": str(int(validation * 1000)),
        "x-queue-time": str(int(queue * 1000)),
        "x-inference-time": str(int(inference * 1000)),
        "x-time-per-token": str(int(inference * 1000 / max(1, job.entry.generated))),
        "x-prompt-tokens": str(len(job.request.parts)),
        "x-generated-tokens": str(generated),
    }


async def stream(
    service: Service,
    request: web.Request,
    characters: int,
    prepare: Callable[[], tuple[Generation, Dialect]],
    dialect: Dialect,
) -> web.StreamResponse:
    """A streamed answer: status 200 first, then events; errors are events too.

    `prepare` validates and may raise ApiError, which `dialect` writes.
    """
    headers = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-cache",
        "x-compute-type": service.compute_type,
        "x-compute-characters": str(characters),
        "X-Accel-Buffering": "no",
    }
    response = web.StreamResponse(headers=headers)
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    await response.prepare(request)
    channel = Channel(request, chunked=request.version >= (1, 1))
    try:
        generation, writer = prepare()
        await _stream_tokens(service, generation, writer, channel)
    except BodyError as refused:
        channel.write(dialect.failure(ApiError(refused.status, "validation", refused.text)))
    except ApiError as error:
        if error.cause is not None:
            service.metrics.add("tgi_request_failure", f'err="{error.cause}"')
        channel.write(dialect.failure(error))
    if not channel.closed:
        await response.write_eof()
    return response


async def _stream_tokens(service: Service, generation: Generation, writer: Dialect, channel: Channel) -> None:
    driver, written = service.driver, 0

    def on_token(job: Job, token: Token) -> None:
        if channel.closed:
            driver.abandon(job)
            return
        channel.write(writer.token(job, token))

    plan = plan_answer(generation, service.identity, draw_eos=service.draw_eos)
    job = driver.start(generation, plan, on_token)
    while not await driver.ended_within(job, KEEP_ALIVE_SECONDS):
        if channel.writes == written:
            channel.write(":\n\n")
        written = channel.writes
    await driver.wait(job)
    ending = writer.end(job)
    if ending:
        channel.write(ending)
