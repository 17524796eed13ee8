"""From a request's arrival to a place in a batch: validation, the queue, and what joins next.

Rules: router/src/validation.rs and backends/v3/src/queue.rs of TGI 3.3.7.
"""

import heapq
from collections import deque

from trimtab.simulation.blocks import Allocator
from trimtab.simulation.prompts import Prompt
from trimtab.simulation.requests import CHUNK_TOKENS, Entry
from trimtab.simulation.settings import TOKENIZER_S, TOKENIZER_S_PER_TOKEN, Settings


class Intake:
    """Tokenizer threads in strict round robin, then one queue, first in first out."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.queue: deque[Entry] = deque()
        self.validating: list[tuple[float, int, Entry]] = []
        self._workers = [0.0] * max(1, settings.validation_workers)
        self._turn = 0
        self._serial = 0

    def submit(self, now: float, prompt: Prompt, max_new_tokens: int | None, stop_after: int | None) -> Entry:
        """Hand a request to the next tokenizer thread, busy or not."""
        wanted = self.settings.max_total_tokens - prompt.tokens if max_new_tokens is None else max_new_tokens
        self._serial += 1
        entry = Entry(self._serial, prompt, wanted, stop_after, now)
        entry.validation_s = TOKENIZER_S + TOKENIZER_S_PER_TOKEN * prompt.tokens
        worker = self._turn
        self._turn = (worker + 1) % len(self._workers)
        entry.queued_at = self._workers[worker] = max(now, self._workers[worker]) + entry.validation_s
        entry.need_new = min(wanted, CHUNK_TOKENS)
        heapq.heappush(self.validating, (entry.queued_at, entry.number, entry))
        return entry

    def take_validated(self, now: float) -> None:
        """Queue the requests whose tokenization is over."""
        validating = self.validating
        while validating and validating[0][0] <= now:
            self.queue.append(heapq.heappop(validating)[2])


class Admission:
    """Decides which of the queue's first requests join a batch, and reserves their blocks."""

    def __init__(self, settings: Settings, allocator: Allocator, queue: deque[Entry]) -> None:
        self.settings = settings
        self.allocator = allocator
        self.queue = queue

    def pick(self, least: int | None, most: int | None, budget: int, room: int, dropped: list[Entry]) -> list[Entry]:
        """Requests from the head of the queue, as far as prefill budget and KV cache go.

        `least` and `most` bound their number (fewer than `least`: none), `budget` their prompt tokens, `room` the
        tokens of a padded batch. Cancelled requests on the way go to `dropped`.
        """
        queue, block = self.queue, self.settings.block_tokens
        if not queue or (least is not None and len(queue) < least) or most == 0:
            return []
        budget = -(-budget // block) * block
        chosen: list[Entry] = []
        used = 0
        while queue and len(chosen) != most:
            entry = queue[0]
            if entry.cancelled:
                dropped.append(queue.popleft())
                continue
            fits = (
                self._fit(entry, budget - used)
                if self.settings.paged
                else self._fit_padded(entry, chosen, budget, room)
            )
            if not fits:
                break
            chosen.append(queue.popleft())
            used += entry.pending
            if entry.computed + entry.pending < entry.input_tokens:
                break
        if least is not None and len(chosen) < least:
            for entry in reversed(chosen):
                self.release(entry)
                queue.appendleft(entry)
            return []
        return chosen

    def _fit(self, entry: Entry, budget: int) -> bool:
        """Reserve the whole future need and set the first chunk of the prompt; False: it has to wait."""
        needed = entry.input_tokens + entry.need_new + max(0, self.settings.speculate - 1)
        allocation = self.allocator.allocate(needed, entry.prompt if entry.share_prefix else None)
        if allocation is None:
            return False
        cached = allocation.prefix_tokens
        if cached >= entry.input_tokens:
            cached = entry.input_tokens - 1
        todo = entry.input_tokens - cached
        if todo > budget:
            if not self.settings.chunking or budget <= 0:
                self.allocator.release(allocation)
                return False
            todo = budget
        entry.allocation, entry.computed, entry.pending = allocation, cached, todo
        return True

    def _fit_padded(self, entry: Entry, chosen: list[Entry], budget: int, room: int) -> bool:
        longest = max([entry.input_tokens, *(other.input_tokens for other in chosen)])
        prompts = (len(chosen) + 1) * longest
        answers = entry.need_new + sum(other.need_new for other in chosen)
        if prompts > budget or prompts + answers + self.settings.speculate > room:
            return False
        entry.computed, entry.pending = 0, entry.input_tokens
        return True

    def held(self, entry: Entry) -> int:
        """KV tokens that the request keeps from others."""
        if entry.allocation is None:
            return entry.input_tokens + entry.need_new
        return entry.allocation.blocks * self.settings.block_tokens

    def release(self, entry: Entry) -> None:
        """Give its blocks back."""
        if entry.allocation is not None:
            self.allocator.release(entry.allocation)
            entry.allocation = None
