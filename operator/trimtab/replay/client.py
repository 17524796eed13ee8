"""The open-loop client: sends each request when the trace says, however slow the server is.

Latency counts from the time that the trace asked for, not from the time the client got round to it, so a slow
client cannot hide a slow server ("coordinated omission"); how late requests were sent is reported beside it.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import numpy as np
from numpy.typing import NDArray

from trimtab.replay.prompts import PromptTexts
from trimtab.replay.trace import Floats, Trace

Api = Literal["openai", "tgi"]
TAIL_BYTES = 4096
PROGRESS_SECONDS = 0.5
MISSING = float("nan")
_HIT = re.compile(r";\s*hit\b(?!\s*=\s*\?0)")
_COUNT = re.compile(rb'"(?:completion_tokens|generated_tokens)"\s*:\s*(\d+)')
_STREAM_ERROR = re.compile(rb'(?:^|\n)(?:event:\s*error|data:\s*\{\s*"error")')


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how requests are sent."""

    url: str
    api: Api = "openai"
    stream: bool = True
    model: str = "tgi"
    timeout_s: float = 120.0
    keepalive: bool = False
    max_outstanding: int = 2048
    headers: dict[str, str] = field(default_factory=dict)

    def route(self) -> str:
        """The address of the route that is called."""
        if self.api == "openai":
            return f"{self.url.rstrip('/')}/v1/chat/completions"
        return f"{self.url.rstrip('/')}/{'generate_stream' if self.stream else 'generate'}"

    def body(self, prompt: str, output_tokens: int) -> bytes:
        """The request: greedy, so that answers may be cached."""
        if self.api == "tgi":
            document: dict[str, Any] = {
                "inputs": prompt,
                "parameters": {"max_new_tokens": output_tokens, "details": True},
            }
        else:
            document = {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": output_tokens,
                "temperature": 0,
                "stream": self.stream,
            }
            if self.stream:
                document["stream_options"] = {"include_usage": True}
        return json.dumps(document).encode()


@dataclass(slots=True)
class Outcomes:
    """One entry a request; times are seconds from the start of the replay, NaN where there is none.

    `code` is the HTTP status, or "timeout", "connection", "stream" (an error inside a stream that began well);
    "" for a request that was never sent. `hit` is True or False as Cache-Status says, None without that header.
    """

    scheduled_s: Floats
    sent_s: Floats
    first_s: Floats
    done_s: Floats
    tokens: NDArray[np.int64]
    code: list[str]
    hit: list[bool | None]

    @classmethod
    def empty(cls, trace: Trace) -> "Outcomes":
        """Nothing sent yet."""
        count = len(trace)
        blank = np.full(count, MISSING)
        return cls(
            scheduled_s=trace.arrival_s.copy(),
            sent_s=blank.copy(),
            first_s=blank.copy(),
            done_s=blank.copy(),
            tokens=np.zeros(count, dtype=np.int64),
            code=[""] * count,
            hit=[None] * count,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is; `elapsed_s` since its start."""

    elapsed_s: float
    sent: int
    finished: int
    failed: int
    total: int


class _Run:
    """State of one replay."""

    def __init__(self, trace: Trace, target: Target, session: aiohttp.ClientSession) -> None:
        self.trace = trace
        self.target = target
        self.session = session
        self.outcomes = Outcomes.empty(trace)
        self.prompts = PromptTexts(trace)
        self.route = target.route()
        self.clock = asyncio.get_running_loop().time
        self.start = self.clock()
        self.slots = asyncio.Semaphore(target.max_outstanding)
        self.sent = self.finished = self.failed = 0

    def now(self) -> float:
        return self.clock() - self.start

    def progress(self) -> Progress:
        return Progress(self.now(), self.sent, self.finished, self.failed, len(self.trace))

    async def send(self, index: int) -> None:
        result = self.outcomes
        try:
            body = self.target.body(self.prompts.text(index), int(self.trace.output_tokens[index]))
            result.sent_s[index] = self.now()
            async with self.session.post(self.route, data=body) as response:
                result.hit[index] = parse_cache_status(response.headers.get("Cache-Status"))
                result.code[index] = str(response.status)
                if response.status == 200 and self.target.stream:
                    await self._read_stream(index, response)
                else:
                    _count_answer(result, index, await response.read())
            result.done_s[index] = self.now()
        except TimeoutError:
            result.code[index] = "timeout"
        except (aiohttp.ClientError, ConnectionError):
            result.code[index] = "connection"
        finally:
            self.finished += 1
            self.failed += result.code[index] != "200"
            self.slots.release()

    async def _read_stream(self, index: int, response: aiohttp.ClientResponse) -> None:
        """Count events without parsing them: thousands of chunks a second must cost little."""
        result = self.outcomes
        events = 0
        tail = b""
        async for chunk in response.content.iter_any():
            # Four bytes of the chunk before complete a split "data:" and can hold no whole one.
            new = (tail[-4:] + chunk).count(b"data:")
            if events == 0 and new:
                result.first_s[index] = self.now()
            events += new
            tail = (tail + chunk)[-TAIL_BYTES:]
        if _STREAM_ERROR.search(tail):
            result.code[index] = "stream"
            return
        stated = _COUNT.findall(tail)
        trailer = tail.count(b"[DONE]")
        result.tokens[index] = int(stated[-1]) if stated else max(events - trailer, 0)


def parse_cache_status(value: str | None) -> bool | None:
    """Whether any cache on the way answered (RFC 9211); None without the header."""
    return None if value is None else _HIT.search(value) is not None


def _count_answer(result: Outcomes, index: int, raw: bytes) -> None:
    stated = _COUNT.findall(raw)
    if stated:
        result.tokens[index] = int(stated[-1])


async def replay(trace: Trace, target: Target, on_progress: Callable[[Progress], None] | None = None) -> Outcomes:
    """Send the trace; returns when every request is answered, failed, or timed out.

    The span is bounded by the trace's last arrival plus the time-out of a request; the count by the trace. At most
    `target.max_outstanding` requests are open at once: beyond that, requests wait, and the lag shows it.
    """
    # A Service spreads connections, not requests: kept ones would stay with the pods that were there first.
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, force_close=not target.keepalive)
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    headers = {"Content-Type": "application/json", **target.headers}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        run = _Run(trace, target, session)
        reporter = asyncio.create_task(_report(run, on_progress)) if on_progress else None
        tasks: set[asyncio.Task[None]] = set()
        try:
            for index, due in enumerate(trace.arrival_s.tolist()):
                wait = due - run.now()
                if wait > 0:
                    await asyncio.sleep(wait)
                await run.slots.acquire()
                task = asyncio.create_task(run.send(index))
                run.sent += 1
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            if reporter:
                reporter.cancel()
        if on_progress:
            on_progress(run.progress())
        return run.outcomes


async def _report(run: _Run, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(run.progress())
        await asyncio.sleep(PROGRESS_SECONDS)
