"""One pod in a discrete-event simulation: a sidecar with limit and queue in front of the engine model."""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from trimtab.catalog.steptime import StepTimeModel
from trimtab.simulation.engine import Engine
from trimtab.simulation.prompts import Prompt
from trimtab.simulation.requests import Entry, Step
from trimtab.simulation.settings import Settings

FOREVER = float("inf")


class Phase(IntEnum):
    """Life of a replica."""

    BOOTING = 0
    READY = 1
    DRAINING = 2
    GONE = 3


@dataclass(frozen=True, slots=True)
class Admission:
    """The sidecar's limits; None: unlimited."""

    max_in_flight: int | None = None
    max_queue: int | None = None
    queue_timeout_s: float | None = None


class Replica:
    """Its engine is advanced only when something happens to it; runs of equal decode passes are jumped over."""

    __slots__ = (
        "_pending", "_run_begin", "alarm", "created_at", "decode_passes", "decode_s", "engine", "gone_at", "in_flight",
        "number", "phase", "queue", "ready_at",
    )  # fmt: skip

    def __init__(
        self, number: int, settings: Settings, times: StepTimeModel, created_at: float, ready_at: float
    ) -> None:
        self.number = number
        self.engine = Engine(settings, times)
        self.phase = Phase.BOOTING
        self.created_at = created_at
        self.ready_at = ready_at
        self.gone_at: float | None = None
        self.in_flight = 0
        self.queue: deque[tuple[int, float]] = deque()
        """(request, time at which it began to wait)"""
        self.decode_passes = 0
        self.decode_s = 0.0
        self.alarm = FOREVER
        """When `wake` is due next."""
        self._pending: Step | None = None
        self._run_begin: float | None = None

    def submit(self, now: float, prompt: Prompt, max_new_tokens: int, stop_after: int | None) -> Entry:
        """Hand a request to the engine."""
        engine = self.engine
        if self._run_begin is not None:
            # The pass under way ends, whatever has arrived; what follows it is decided anew.
            begin = self._run_begin
            self._run_begin = None
            step = engine.fast_forward(begin, now)
            if step is not None:
                self._pending = step
                self.alarm = begin + step.duration_s
                self._count(step)
        entry = engine.submit(now, prompt, max_new_tokens, stop_after)
        if self._pending is None:
            self.alarm = min(self.alarm, entry.queued_at)
        return entry

    def wake(self, now: float) -> list[Entry]:
        """The alarm went off: returns the requests that end now and goes on."""
        engine = self.engine
        finished: list[Entry] = []
        begin = self._run_begin
        if begin is not None:
            self._run_begin = None
            step = engine.fast_forward(begin, FOREVER)
            if step is not None:
                self._count(step)
                finished = step.finished
        elif self._pending is not None:
            finished = self._pending.finished
            self._pending = None
        self._go_on(now)
        return finished

    def _go_on(self, now: float) -> None:
        engine = self.engine
        end = engine.horizon(now)
        if end is not None:
            self._run_begin = now
            self.alarm = end
            return
        step = engine.step(now)
        if step is None:
            ready = engine.next_ready()
            self.alarm = FOREVER if ready is None else max(now, ready)
            return
        self._pending = step
        self.alarm = now + step.duration_s
        self._count(step)

    def _count(self, step: Step) -> None:
        if step.method == "decode":
            self.decode_passes += step.passes
            self.decode_s += step.duration_s
