"""Who may use the engine, and when: a live limit on sequences in flight and a bounded, fair queue before it.

Fairness is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each pair of priority and tenant is a
flow whose weight follows from the priority; a request's virtual start is the later of the queue's virtual time and
its flow's last virtual finish, and the smallest start goes first. A tenant with a thousand waiting requests delays
another tenant's single request by about one turn, and low priority is slowed but never starved.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.sidecar.errors import Failure

WEIGHTS = (16.0, 4.0, 1.0)
"""Share of a flow by priority: high, normal, low."""
_SMOOTHING = 0.1
_MAX_RETRY_AFTER = 120


class Ticket:
    """One request's place: waiting, then admitted, then released."""

    __slots__ = ("admitted", "begin", "deadline", "flow", "on_admit", "on_reject", "since", "units", "waiting")

    def __init__(
        self, units: int, flow: tuple[int, bytes], on_admit: Callable[[], None], on_reject: Callable[[Failure], None]
    ) -> None:
        self.units = units
        self.flow = flow
        self.on_admit = on_admit
        self.on_reject = on_reject
        self.admitted = False
        self.waiting = False
        self.since = 0.0
        self.begin = 0.0
        self.deadline = math.inf


@dataclass(slots=True)
class Bounds:
    """What the limits are right now."""

    max_in_flight: int
    max_queue: int
    queue_timeout: float  # seconds


class Admission:
    """Grants tickets. All times are arguments (seconds, monotonic)."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.in_flight = 0
        self.depth = 0
        self._heap: list[tuple[float, int, Ticket]] = []
        self._virtual = 0.0
        self._finish: dict[tuple[int, bytes], float] = {}
        self._sequence = 0
        self._waiting = 0  # sequences in the queue
        self._service = 0.0  # seconds a request spends at the engine, smoothed; 0 = unknown

    def enter(self, ticket: Ticket, now: float) -> None:
        """Admit at once, queue, or reject: calls exactly one of the ticket's callbacks, now or later."""
        ticket.units = max(1, min(ticket.units, self.bounds.max_in_flight))
        ticket.since = now
        if not self.depth and self.in_flight + ticket.units <= self.bounds.max_in_flight:
            self._grant(ticket, now)
            return
        failure = self._refusal(ticket)
        if failure is not None:
            ticket.on_reject(failure)
            return
        ticket.deadline = now + self.bounds.queue_timeout
        ticket.waiting = True
        start = max(self._virtual, self._finish.get(ticket.flow, 0.0))
        self._finish[ticket.flow] = start + ticket.units / WEIGHTS[ticket.flow[0]]
        self._sequence += 1
        self.depth += 1
        self._waiting += ticket.units
        heapq.heappush(self._heap, (start, self._sequence, ticket))

    def leave(self, ticket: Ticket, now: float) -> None:
        """Give back an admitted ticket or abandon a waiting one; safe to call twice."""
        if ticket.waiting:
            self._unqueue(ticket)
        elif ticket.admitted:
            ticket.admitted = False
            self.in_flight -= ticket.units
            self._measure(now - ticket.begin)
        self.pump(now)

    def resize(self, bounds: Bounds, now: float) -> None:
        """New limits; requests already admitted stay."""
        self.bounds = bounds
        self.pump(now)

    def expire(self, now: float) -> None:
        """Reject those whose deadline has passed."""
        late = [ticket for _, _, ticket in self._heap if ticket.waiting and ticket.deadline <= now]
        for ticket in late:
            if ticket.waiting:
                self._unqueue(ticket)
                ticket.on_reject(self._failure("queue_timeout", "no place became free in time"))
        if late:
            self.pump(now)

    def pump(self, now: float) -> None:
        """Admit waiting requests while there is room."""
        while self._heap:
            start, _, ticket = self._heap[0]
            units = min(ticket.units, self.bounds.max_in_flight)
            if ticket.waiting and self.in_flight + units > self.bounds.max_in_flight:
                return
            heapq.heappop(self._heap)
            if ticket.waiting:  # else it was abandoned
                self._unqueue(ticket)
                ticket.units = units
                self._virtual = max(self._virtual, start)
                self._grant(ticket, now)
        self._finish.clear()
        self._virtual = 0.0

    def expected_wait(self, units: int) -> float:
        """Seconds until a newcomer would be admitted; 0 while the time of a request at the engine is unknown.

        By Little's law the engine finishes as many sequences a second as it holds, divided by the time one takes.
        Unlike the pace of the last releases, this does not mind that sequences of one batch often end together.
        """
        return (self._waiting + units) * self._service / self.bounds.max_in_flight

    def _refusal(self, ticket: Ticket) -> Failure | None:
        if self.depth >= self.bounds.max_queue:
            return self._failure("queue_full", f"{self.depth} requests are waiting already")
        # High priority passes others in the queue, so the length of the queue says little about its wait.
        if ticket.flow[0] > 0 and self.expected_wait(ticket.units) > self.bounds.queue_timeout:
            return self._failure("hopeless", "the wait would be longer than the queue's time limit")
        return None

    def _failure(self, kind: str, why: str) -> Failure:
        wait = self.expected_wait(1)
        retry = max(1, min(_MAX_RETRY_AFTER, math.ceil(wait)))
        return Failure(429, "overloaded", f"Model is overloaded: {why}", retry_after=retry, reason=kind)

    def _grant(self, ticket: Ticket, now: float) -> None:
        ticket.admitted = True
        ticket.begin = now
        self.in_flight += ticket.units
        ticket.on_admit()

    def _unqueue(self, ticket: Ticket) -> None:
        ticket.waiting = False
        self.depth -= 1
        self._waiting -= ticket.units

    def _measure(self, seconds: float) -> None:
        """Smooth the time that a request spends at the engine."""
        self._service += (seconds - self._service) * (_SMOOTHING if self._service else 1.0)
