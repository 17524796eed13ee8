"""The work queue on a virtual clock."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.controller.fakes.clock import run_virtually

from trimtab.controller.queue import Backoff, Visit, WorkQueue, resync

Handler = Callable[[str], Awaitable[float | None]]


class ThrottledError(Exception):
    retry_after = 30.0


async def _working(queue: WorkQueue[str], seconds: float) -> None:
    worker = asyncio.create_task(queue.run())
    await asyncio.sleep(seconds)
    queue.close()
    await worker


def _now() -> float:
    return asyncio.get_running_loop().time()


def _queue(handle: Handler, **options: object) -> WorkQueue[str]:
    return WorkQueue(handle, jitter=lambda: 1.0, **options)  # type: ignore[arg-type]


def test_a_key_added_many_times_before_a_visit_is_visited_once() -> None:
    visits: list[str] = []

    async def handle(key: str) -> None:
        visits.append(key)

    async def main() -> None:
        queue = _queue(handle)
        for _ in range(10):
            queue.add("a")
        queue.add("b")
        await _working(queue, 1)

    run_virtually(main())
    assert sorted(visits) == ["a", "b"]


def test_a_key_added_during_its_visit_is_visited_once_more_and_never_in_parallel() -> None:
    running, peak, visits = 0, 0, 0

    async def handle(_key: str) -> None:
        nonlocal running, peak, visits
        running, visits = running + 1, visits + 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1

    async def main() -> None:
        queue = _queue(handle, concurrency=4)
        queue.add("a")
        worker = asyncio.create_task(queue.run())
        await asyncio.sleep(0.5)
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(10)
        assert queue.idle
        queue.close()
        await worker

    run_virtually(main())
    assert (peak, visits) == (1, 2)


def test_no_more_keys_are_visited_at_once_than_allowed() -> None:
    running, peak = 0, 0

    async def handle(_key: str) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1

    async def main() -> None:
        queue = _queue(handle, concurrency=3)
        for index in range(20):
            queue.add(str(index))
        await _working(queue, 60)

    run_virtually(main())
    assert peak == 3


def test_failures_back_off_exponentially_to_a_ceiling_and_success_forgets_them() -> None:
    times: list[float] = []

    async def handle(_key: str) -> None:
        times.append(_now())
        if len(times) <= 6:
            raise RuntimeError("broken")

    async def main() -> None:
        queue = _queue(handle, backoff=Backoff(first=1, longest=8))
        queue.add("a")
        worker = asyncio.create_task(queue.run())
        await asyncio.sleep(100)
        queue.add("a")
        await asyncio.sleep(100)
        queue.close()
        await worker

    run_virtually(main())
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[:6] == [1, 2, 4, 8, 8, 8]
    assert len(times) == 8


def test_jitter_takes_off_at_most_half_of_the_delay() -> None:
    backoff = Backoff(first=2, longest=60)
    assert backoff.delay(3, 0.0) == 4
    assert backoff.delay(3, 0.5) == 6
    assert backoff.delay(10_000, 1.0) == 60


def test_a_throttling_server_is_not_asked_again_before_the_time_it_named() -> None:
    times: list[float] = []

    async def handle(_key: str) -> None:
        times.append(_now())
        if len(times) == 1:
            raise ThrottledError

    async def main() -> None:
        queue = _queue(handle)
        queue.add("a")
        await _working(queue, 100)

    run_virtually(main())
    assert times == [0, 30]


def test_one_failing_key_does_not_hold_up_the_others() -> None:
    done: list[str] = []

    async def handle(key: str) -> None:
        if key == "bad":
            raise RuntimeError("broken")
        done.append(key)

    async def main() -> None:
        queue = _queue(handle, concurrency=1)
        queue.add("bad")
        queue.add("good")
        await _working(queue, 0.1)

    run_virtually(main())
    assert done == ["good"]


def test_an_object_that_changes_all_the_time_is_visited_at_the_minimum_interval() -> None:
    times: list[float] = []

    async def handle(_key: str) -> None:
        times.append(_now())

    async def main() -> None:
        queue = _queue(handle, min_interval=0.2)
        worker = asyncio.create_task(queue.run())
        for _ in range(100):
            queue.add("hot")
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
        queue.close()
        await worker

    run_virtually(main())
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.2 - 1e-9
    assert len(times) == 11
    assert times[-1] >= 1.98


def test_a_handler_that_asks_to_come_back_is_called_again_then() -> None:
    times: list[float] = []

    async def handle(_key: str) -> float | None:
        times.append(_now())
        return 5.0 if len(times) < 3 else None

    async def main() -> None:
        queue = _queue(handle)
        queue.add("a")
        await _working(queue, 60)

    run_virtually(main())
    assert times == [0, 5, 10]


def test_a_forgotten_key_does_not_come_back() -> None:
    visits: list[str] = []

    async def handle(key: str) -> None:
        visits.append(key)
        raise RuntimeError("broken")

    async def main() -> None:
        queue = _queue(handle)
        queue.add("gone")
        worker = asyncio.create_task(queue.run())
        await asyncio.sleep(0.1)
        queue.forget("gone")
        await asyncio.sleep(1000)
        queue.close()
        await worker

    run_virtually(main())
    assert visits == ["gone"]


def test_visits_are_reported_with_their_outcome() -> None:
    seen: list[Visit[str]] = []

    async def handle(_key: str) -> None:
        await asyncio.sleep(2)
        raise RuntimeError("broken")

    async def main() -> None:
        queue = _queue(handle, on_visit=seen.append, backoff=Backoff(first=7))
        queue.add("a")
        await _working(queue, 3)

    run_virtually(main())
    assert [(visit.key, visit.seconds, str(visit.failure), visit.retry_in) for visit in seen] == [("a", 2, "broken", 7)]


def test_what_is_not_an_exception_ends_the_queue() -> None:
    class CrashError(BaseException):
        pass

    async def handle(_key: str) -> None:
        raise CrashError

    async def main() -> None:
        queue = _queue(handle)
        queue.add("a")
        await queue.run()

    with pytest.raises(BaseExceptionGroup) as raised:
        run_virtually(main())
    assert raised.group_contains(CrashError)


def test_resync_visits_every_key_again_within_a_tenth_more_than_the_period() -> None:
    times: dict[str, list[float]] = {"a": [], "b": []}
    jitters = iter([0.0, 1.0, 0.5, 0.5])

    async def handle(key: str) -> None:
        times[key].append(_now())

    async def keys() -> list[str]:
        return ["a", "b"]

    async def main() -> None:
        queue = _queue(handle)
        tick = asyncio.create_task(resync(queue, keys, every=100, jitter=lambda: next(jitters)))
        await _working(queue, 250)
        tick.cancel()

    run_virtually(main())
    assert times == {"a": [100, 205], "b": [110, 205]}
