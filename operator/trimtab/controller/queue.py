"""A work queue of keys: each key once, one worker a key, bounded concurrency, back-off with jitter.

Watches may fire ten times for one object and in any order; what counts is that its key is visited once more after the
last of them. The queue therefore holds keys, never events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays after failures in seconds: doubling from `first` to `longest`, of which the upper half is jittered."""

    first: float = 0.5
    longest: float = 300.0

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after the given number of failures in a row (from 1); `jitter` is in [0, 1)."""
        base = min(self.longest, self.first * 2.0 ** min(failures - 1, 60))
        return base * (0.5 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class Visit(Generic[K]):
    """How one visit of a key ended, for logs and metrics."""

    key: K
    seconds: float
    failure: Exception | None
    retry_in: float | None
    """Seconds until the queue comes back by itself; None: only when something happens."""


class WorkQueue(Generic[K]):
    """Runs `handle(key)` for added keys.

    `handle` returns the seconds after which it wants to be called again, or None. When it raises an Exception, the key
    comes back after the back-off, and not before the exception's `retry_after` (seconds) when it has one. Anything that
    is not an Exception ends the queue. All times come from the running loop's clock; `jitter` gives numbers in [0, 1).
    `min_interval` (seconds between the starts of two visits of a key) keeps one busy object from starving the others.
    """

    def __init__(
        self,
        handle: Callable[[K], Awaitable[float | None]],
        *,
        jitter: Callable[[], float],
        concurrency: int = 4,
        backoff: Backoff | None = None,
        min_interval: float = 0.0,
        on_visit: Callable[[Visit[K]], None] | None = None,
    ) -> None:
        self._handle = handle
        self._jitter = jitter
        self._concurrency = concurrency
        self._backoff = backoff or Backoff()
        self._min_interval = min_interval
        self._on_visit = on_visit
        self._ready: asyncio.Queue[K | None] = asyncio.Queue()
        self._queued_at: dict[K, float] = {}
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._started_at: dict[K, float] = {}
        self._closed = False

    @property
    def depth(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._queued_at)

    @property
    def busy(self) -> int:
        """Keys that are being visited now."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """True when nothing waits, runs or is about to (a visit planned for later does not count)."""
        return not (self._queued_at or self._running or self._again)

    def oldest_wait(self) -> float:
        """Seconds that the longest waiting key has waited."""
        return self._now() - min(self._queued_at.values()) if self._queued_at else 0.0

    def add(self, key: K, delay: float = 0.0) -> None:
        """Visit the key after `delay` seconds; an earlier visit already planned stays."""
        if self._closed:
            return
        earliest = self._started_at.get(key, float("-inf")) + self._min_interval
        wait = max(delay, earliest - self._now())
        if wait > 0:
            self._plan(key, wait)
        else:
            self._push(key)

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key that no longer exists."""
        self._cancel_timer(key)
        self._failures.pop(key, None)
        self._started_at.pop(key, None)

    async def run(self) -> None:
        """Work until `close`; cancel to stop without finishing the current visits."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(self._work())
        finally:
            self._closed = True
            for key in list(self._timers):
                self._cancel_timer(key)

    def close(self) -> None:
        """Let the workers end after the visits they are in; waiting keys are dropped."""
        self._closed = True
        for _ in range(self._concurrency):
            self._ready.put_nowait(None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _push(self, key: K) -> None:
        self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._queued_at:
            self._queued_at[key] = self._now()
            self._ready.put_nowait(key)

    def _plan(self, key: K, delay: float) -> None:
        if key in self._queued_at:
            return
        due = self._now() + delay
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = asyncio.get_running_loop().call_at(due, self._push, key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            if key is None or self._closed:
                return
            del self._queued_at[key]
            self._running.add(key)
            try:
                await self._visit(key)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _visit(self, key: K) -> None:
        start = self._started_at[key] = self._now()
        failure: Exception | None = None
        try:
            retry_in = await self._handle(key)
            self._failures.pop(key, None)
        except Exception as raised:  # noqa: BLE001 - whatever goes wrong for one key must not stop the others
            failure = raised
            count = self._failures[key] = self._failures.get(key, 0) + 1
            asked: float = getattr(raised, "retry_after", None) or 0.0
            retry_in = max(self._backoff.delay(count, self._jitter()), asked)
        if retry_in is not None:
            self.add(key, retry_in)
        if self._on_visit is not None:
            self._on_visit(Visit(key, self._now() - start, failure, retry_in))


async def resync(
    queue: WorkQueue[K],
    keys: Callable[[], Awaitable[Iterable[K]]],
    *,
    every: float,
    jitter: Callable[[], float],
) -> None:
    """Every `every` seconds queue all keys, spread over a tenth of that time: the net under lost events."""
    while True:
        await asyncio.sleep(every)
        for key in await keys():
            queue.add(key, jitter() * every * 0.1)
