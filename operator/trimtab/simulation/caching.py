"""The sidecar's exact cache and its sharing of equal requests, as far as timing goes."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

Scope = Literal["off", "pod", "shared"]


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """`pod`: each sidecar has its own; `shared`: one for all (a second tier in Redis)."""

    scope: Scope = "off"
    max_entries: int = 100_000
    ttl_s: float = float("inf")
    hit_s: float = 0.002
    """Time of an answer from the cache. ESTIMATE for a loopback exchange."""


class AnswerCache:
    """Least recently used answers by prompt, and who waits for an answer that is being generated."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self._answers: OrderedDict[int, float] = OrderedDict()
        self._waiting: dict[int, list[int]] = {}

    def hit(self, key: int, now: float) -> bool:
        """Whether an answer is there."""
        expires = self._answers.get(key)
        if expires is None:
            return False
        if expires <= now:
            del self._answers[key]
            return False
        self._answers.move_to_end(key)
        return True

    def join(self, key: int, request: int) -> bool:
        """Wait for the answer to an equal request; False: none is under way, and this one now is."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = []
            return False
        waiting.append(request)
        return True

    def answered(self, key: int, now: float) -> list[int]:
        """Store an answer; returns the requests that waited for it."""
        self._answers[key] = now + self.settings.ttl_s
        self._answers.move_to_end(key)
        if len(self._answers) > self.settings.max_entries:
            self._answers.popitem(last=False)
        return self._waiting.pop(key, [])

    def failed(self, key: int) -> list[int]:
        """No answer came; returns the requests that waited for it."""
        return self._waiting.pop(key, [])
