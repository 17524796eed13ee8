"""Facts about models that the catalogue does not have, from the Hub: asked once, in the background."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from trimtab.api.errors import InvalidSpecError
from trimtab.catalog.models import ModelFacts
from trimtab.controller.clock import Clock
from trimtab.hub.remote import HubError

_log = logging.getLogger(__name__)
_PARALLEL = 2

Fetch = Callable[[str, str | None], ModelFacts]
"""Model id and revision → facts; blocking; raises HubError or InvalidSpecError."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there are no facts."""

    why: str
    pending: bool = False
    """The answer is on its way."""


@dataclass(slots=True)
class _Answer:
    found: ModelFacts | Missing
    asked_at: float
    pending: bool = False


@dataclass(slots=True)
class ModelFinder:
    """Looks models up without ever holding up a visit: the first answer is "not yet", `on_answer` tells when to ask
    again. What could not be found is asked for again after `retry_seconds`."""

    fetch: Fetch
    clock: Clock
    on_answer: Callable[[], None]
    retry_seconds: float = 600.0
    _answers: dict[tuple[str, str | None], _Answer] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARALLEL))

    def find(self, model_id: str, revision: str | None) -> ModelFacts | Missing:
        """The facts, or why there are none (yet)."""
        key, now = (model_id, revision), self.clock.monotonic()
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = _Answer(Missing("the Hub is being asked", pending=True), now)
            self._ask(key, known)
        elif isinstance(known.found, Missing) and not known.pending and now - known.asked_at > self.retry_seconds:
            known.asked_at = now
            self._ask(key, known)
        return known.found

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ask(self, key: tuple[str, str | None], answer: _Answer) -> None:
        answer.pending = True
        task = asyncio.create_task(self._answer(key, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, key: tuple[str, str | None], answer: _Answer) -> None:
        before = answer.found
        try:
            async with self._slots:
                answer.found = await asyncio.to_thread(self.fetch, *key)
        except (HubError, InvalidSpecError) as unknown:
            answer.found = Missing(str(unknown))
            _log.warning("model %s: %s", key[0], unknown)
        finally:
            answer.pending = False
        if answer.found != before:
            self.on_answer()
