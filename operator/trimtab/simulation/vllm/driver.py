"""Runs the scheduler model in real time and hands tokens to whoever waits for them.

As the simulated TGI's driver it follows a schedule of absolute times, so that delays of this process do not add up.
"""

import asyncio
from collections.abc import Callable

from trimtab.simulation.server.answers import Plan
from trimtab.simulation.server.text import Answer
from trimtab.simulation.vllm.metrics import Metrics
from trimtab.simulation.vllm.scheduler import Iteration, Scheduler, Sequence

OnToken = Callable[["Job", str], None]


class Job:
    """One generation."""

    __slots__ = ("_last_at", "answer", "done", "index", "on_token", "plan", "sequence", "text")

    def __init__(self, index: int, plan: Plan, sequence: Sequence, on_token: OnToken | None) -> None:
        self.index = index
        """Which choice of the answer it is."""
        self.plan = plan
        self.sequence = sequence
        self.on_token = on_token
        self.answer: Answer = plan.answer()
        self.text: list[str] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_at = sequence.arrived

    @property
    def finish_reason(self) -> str | None:
        """`length`, `stop` or `abort` once it has ended."""
        return self.sequence.finish_reason

    def take(self, now: float) -> float:
        """Hand out the next token; returns the seconds since the one before, or since arrival."""
        count = len(self.text) + 1
        last = count == self.plan.stop_after
        token = self.answer.next(last=last, eos=self.plan.reason == "eos_token")
        # Stop strings and end-of-sequence tokens count, but are not shown.
        self.text.append("" if last else token.text)
        since, self._last_at = now - self._last_at, now
        if self.on_token is not None:
            self.on_token(self, self.text[-1])
        return since


class Driver:
    """Owns the scheduler; everything happens on one event loop."""

    def __init__(self, scheduler: Scheduler, metrics: Metrics) -> None:
        self.scheduler = scheduler
        self.metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._jobs: dict[Sequence, Job] = {}

    def start(self, index: int, prompt_tokens: int, max_tokens: int, plan: Plan, on_token: OnToken | None) -> Job:
        """Begin a validated generation."""
        sequence = self.scheduler.submit(self._loop.time(), prompt_tokens, max_tokens, plan.stop_after)
        self._jobs[sequence] = job = Job(index, plan, sequence, on_token)
        self.metrics.state(self.scheduler)
        self._wake.set()
        return job

    def abandon(self, job: Job) -> None:
        """The client is gone: the request leaves the engine; nothing when it has ended."""
        if self._jobs.pop(job.sequence, None) is None:
            return
        self.scheduler.abort(job.sequence)
        self.metrics.end(job.sequence, self._loop.time())
        self.metrics.state(self.scheduler)
        if not job.done.done():
            job.done.cancel()

    async def run(self) -> None:
        """Walk from step to step; ends only when cancelled."""
        now = self._loop.time()
        while True:
            iteration = self.scheduler.step(now)
            if iteration is None:
                self.metrics.state(self.scheduler)
                self._wake.clear()
                await self._wake.wait()
                now = self._loop.time()
                continue
            now += iteration.duration_s
            # Behind schedule, the loop still gets its turn between steps.
            await asyncio.sleep(max(0.0, now - self._loop.time()))
            self._deliver(iteration, now)

    def _deliver(self, iteration: Iteration, now: float) -> None:
        metrics = self.metrics
        metrics.iteration(iteration)
        metrics.state(self.scheduler)
        for sequence in iteration.emitted:
            job = self._jobs.get(sequence)
            if job is None:
                continue
            first = not job.text
            since = job.take(now)
            if first:
                metrics.first_token(sequence, since)
            else:
                metrics.next_token(since)
        for sequence in iteration.finished:
            job = self._jobs.pop(sequence, None)
            if job is None:
                continue
            metrics.end(sequence, now)
            if not job.done.done():
                job.done.set_result(None)
