"""Runs the engine model in real time and hands tokens to whoever waits for them.

One task walks from pass to pass on a schedule of absolute times, so that the delays of this process do not add up: a
pass that ends late is followed by one that began when the model says.
"""

import asyncio
from collections.abc import Callable

from trimtab.simulation.engine import Engine
from trimtab.simulation.requests import Entry, Step
from trimtab.simulation.server.answers import Plan
from trimtab.simulation.server.errors import ApiError, overloaded
from trimtab.simulation.server.metrics import Metrics
from trimtab.simulation.server.parameters import Generation
from trimtab.simulation.server.text import Answer, Token, to_prompt

FILTER_SECONDS = 2e-4
"""ESTIMATE of the router's own work around a call of the shards."""

OnToken = Callable[["Job", Token], None]


class Job:
    """One generation."""

    __slots__ = ("answer", "arrived", "done", "entry", "on_token", "plan", "queued", "request", "sent")

    def __init__(self, request: Generation, plan: Plan, entry: Entry, on_token: OnToken | None) -> None:
        self.request = request
        self.plan = plan
        self.entry = entry
        self.on_token = on_token
        self.answer: Answer = plan.answer()
        self.sent = 0
        self.arrived = entry.arrived
        self.queued = entry.queued_at
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def finish_reason(self) -> str:
        """`length`, `eos_token` or `stop_sequence`."""
        return self.plan.reason if self.entry.finish_reason == "eos_token" else "length"

    def emit(self, total: int) -> None:
        """Hand out tokens until `total` are out."""
        on_token, entry = self.on_token, self.entry
        while self.sent < total:
            self.sent += 1
            ends = self.sent == self.plan.stop_after
            token = self.answer.next(last=ends, eos=self.plan.reason == "eos_token")
            if on_token is not None and not entry.cancelled:
                on_token(self, token)

    def collect(self) -> list[Token]:
        """All tokens of a finished answer that was not streamed."""
        tokens: list[Token] = []
        self.on_token = lambda _, token: tokens.append(token)
        self.emit(self.entry.generated)
        return tokens

    @property
    def last_token(self) -> bool:
        """Whether the token that was just handed out is the last one."""
        return self.entry.finish_reason is not None and self.sent == self.entry.generated

    def seconds(self) -> tuple[float, float, float, float]:
        """(total, validation, queue, inference) once it has finished."""
        entry = self.entry
        end = entry.last_token_at or self.arrived
        begin = self.queued if entry.started_at is None else entry.started_at
        return end - self.arrived, self.queued - self.arrived, begin - self.queued, end - begin


class Driver:
    """Owns the engine; everything happens on one event loop."""

    def __init__(self, engine: Engine, metrics: Metrics, crash_after: int | None = None) -> None:
        self.engine = engine
        self.metrics = metrics
        self.crashed = asyncio.Event()
        """Set when a shard has died: the process is to end with code 1."""
        self._crash_after = crash_after
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._jobs: dict[int, Job] = {}
        self._streaming: dict[int, Job] = {}
        self._due: float | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def start(self, request: Generation, plan: Plan, on_token: OnToken | None = None) -> Job:
        """Begin a validated generation; raises ApiError 429 when no permit is free."""
        if not self.engine.try_permit():
            raise overloaded()
        entry = self.engine.submit(self._loop.time(), to_prompt(request.parts), request.max_new_tokens, plan.stop_after)
        entry.share_prefix = not request.prompt_details
        job = Job(request, plan, entry, on_token)
        self._jobs[entry.number] = job
        if on_token is not None:
            self._streaming[entry.number] = job
        self.metrics.observe("tgi_request_input_length", len(request.parts))
        self.metrics.observe("tgi_request_max_new_tokens", entry.need_new)
        self.metrics.set("tgi_queue_size", self.engine.queued + 1)
        self._wake.set()
        return job

    async def wait(self, job: Job) -> None:
        """Until the generation is finished; raises ApiError when it fails. Cancelled: the client is gone."""
        try:
            await job.done
        except asyncio.CancelledError:
            self.abandon(job)
            raise

    async def ended_within(self, job: Job, seconds: float) -> bool:
        """Whether the generation ends in that time. Cancelled: the client is gone."""
        try:
            await asyncio.wait({job.done}, timeout=seconds)
        except asyncio.CancelledError:
            self.abandon(job)
            raise
        return job.done.done()

    def abandon(self, job: Job) -> None:
        """The client is gone: the permit is free at once, the engine notices later."""
        if self._jobs.pop(job.entry.number, None) is not None:
            self._streaming.pop(job.entry.number, None)
            self.engine.cancel(job.entry)
            self.engine.release_permit()
            if not job.done.done():
                job.done.cancel()

    async def pass_over(self) -> None:
        """Until the forward pass that is running now has ended; at once when none is."""
        if self._due is None:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    async def run(self) -> None:
        """Walk from pass to pass; ends only when cancelled."""
        now = self._loop.time()
        while True:
            step = self.engine.step(now)
            if step is None or step.passes == 0:
                if step is not None:
                    self._drop(step)
                now = await self._idle()
                continue
            self._before(step)
            self._due = now = now + step.duration_s
            # Behind schedule, the loop still gets its turn between passes.
            await asyncio.sleep(max(0.0, now - self._loop.time()))
            self._due = None
            if self._crash_after is not None and self.engine.passes >= self._crash_after:
                self._crash(step)
                return
            self._deliver(step)

    async def _idle(self) -> float:
        """Wait for a request; returns the time at which the engine goes on."""
        metrics, engine = self.metrics, self.engine
        if engine.passes:
            for name in ("tgi_batch_current_size", "tgi_batch_current_max_tokens"):
                metrics.set(name, 0)
            metrics.set("tgi_queue_size", engine.queued)
        self._wake.clear()
        ready = engine.next_ready()
        if ready is None:
            await self._wake.wait()
            ready = engine.next_ready()
        now = self._loop.time()
        if ready is None:
            return now
        await asyncio.sleep(max(0.0, ready - now))
        return ready

    def _before(self, step: Step) -> None:
        metrics = self.metrics
        labels = f'method="{step.method}"'
        metrics.add("tgi_batch_inference_count", labels)
        metrics.set("tgi_queue_size", self.engine.queued)
        metrics.set("tgi_batch_current_size", step.batch)
        if step.admitted:
            metrics.observe("tgi_batch_next_size", step.admitted)
            if step.concat is not None:
                metrics.add("tgi_batch_concat", f'reason="{step.concat}"')
                metrics.observe("tgi_batch_concat_duration", FILTER_SECONDS, 'method="decode"')

    def _deliver(self, step: Step) -> None:
        metrics, engine = self.metrics, self.engine
        labels = f'method="{step.method}"'
        host = engine.times.host_ms / 1000.0
        metrics.add("tgi_batch_inference_success", labels)
        metrics.observe("tgi_batch_inference_duration", step.duration_s, labels)
        metrics.observe("tgi_batch_forward_duration", max(0.0, step.duration_s - host), labels)
        metrics.observe("tgi_batch_decode_duration", engine.times.host_sequence_ms / 1000.0 * step.batch, labels)
        metrics.observe("tgi_batch_filter_duration", FILTER_SECONDS, labels)
        metrics.set("tgi_batch_current_max_tokens", engine.reserved_tokens)
        metrics.tokens_without_speculation(step.batch)
        for job in list(self._streaming.values()):
            total = engine.tokens_so_far(job.entry)
            if total > job.sent:
                job.emit(total)
        for entry in step.continued:
            metrics.observe("tgi_request_input_length", entry.input_tokens)
            metrics.observe("tgi_request_max_new_tokens", entry.need_new)
        for entry in step.finished:
            self._finish(entry)
        self._drop(step)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _finish(self, entry: Entry) -> None:
        job = self._jobs.pop(entry.number, None)
        if job is None:
            return
        self._streaming.pop(entry.number, None)
        self.engine.release_permit()
        if job.done.done():
            return
        if entry.finish_reason == "error":
            problem = self.engine.refuses(entry.input_tokens, entry.need_new)
            self.metrics.add("tgi_request_failure", 'err="validation"')
            job.done.set_exception(ApiError(422, "validation", f"Input validation error: {problem}"))
            return
        total, validation, queue, inference = job.seconds()
        metrics = self.metrics
        metrics.add("tgi_request_success")
        metrics.observe("tgi_request_duration", total)
        metrics.observe("tgi_request_validation_duration", validation)
        metrics.observe("tgi_request_queue_duration", queue)
        metrics.observe("tgi_request_inference_duration", inference)
        metrics.observe("tgi_request_mean_time_per_token_duration", inference / max(1, entry.generated))
        metrics.observe("tgi_request_generated_tokens", entry.generated)
        job.done.set_result(None)

    def _crash(self, step: Step) -> None:
        """The pass fails: so do all requests of its batch, and the shard dies (server/.../interceptor.py)."""
        self.metrics.add("tgi_batch_inference_failure", f'method="{step.method}"')
        for job in self._jobs.values():
            if job.entry.started_at is not None and not job.done.done():
                job.done.set_exception(
                    ApiError(424, "generation", "Request failed during generation: CUDA out of memory", "generation")
                )
        self.crashed.set()

    def _drop(self, step: Step) -> None:
        if step.dropped:
            self.metrics.add("tgi_request_failure", 'err="dropped"', len(step.dropped))
