"""TGI 3.3.7's router and shards as a state machine: permits, queue, batching, KV blocks, forward passes.

Rules: router/src/infer/mod.rs (permits, continuation), backends/v3/src/backend.rs (batching loop) and
server/text_generation_server/models/flash_causal_lm.py (passes) of tag v3.3.7; docs/simulator.md states them.
The engine has no clock: callers say when a request arrives and when a pass begins, and are told how long it takes.
"""

import heapq
from collections.abc import Iterable

from trimtab.catalog.steptime import StepTimeModel
from trimtab.simulation.blocks import Allocator, RadixAllocator, SimpleAllocator, usable_blocks
from trimtab.simulation.prompts import Prompt
from trimtab.simulation.queueing import Admission, Intake
from trimtab.simulation.requests import CHUNK_TOKENS, Entry, Step
from trimtab.simulation.settings import Settings, length_problem


class Engine:
    """One process. `submit` requests, then call `step` whenever the pass before is over."""

    def __init__(self, settings: Settings, times: StepTimeModel) -> None:
        self.settings = settings
        self.times = times
        self.allocator = _allocator(settings)
        self.permits = 0
        """Requests accepted and not yet answered."""
        self.reserved_tokens = 0
        """KV tokens held by the running batch; shared blocks count for each holder."""
        self.passes = 0
        """Forward passes so far."""
        self._intake = Intake(settings)
        self._queue = self._intake.queue
        self._admission = Admission(settings, self.allocator, self._queue)
        self._decoding: dict[int, Entry] = {}
        self._partial: list[Entry] = []
        self._finishing: list[tuple[int, int, Entry]] = []
        # Passes that every decoding request took part in, and their cached tokens all together.
        self._steps = 0
        self._cached_tokens = 0
        self._waited = 0
        self._decode_next = False
        self._blocked = False
        self._cancelled = False
        self._slope = times.kv_token_ms / 1000.0
        self._fixed: dict[int, float] = {}

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._decoding) + len(self._partial)

    @property
    def queued(self) -> int:
        """Requests that wait for a batch."""
        return len(self._queue)

    @property
    def decoding(self) -> Iterable[Entry]:
        """Requests that get a token in every pass."""
        return self._decoding.values()

    @property
    def cached_tokens(self) -> int:
        """Keys and values of all decoding requests, in tokens."""
        return self._cached_tokens

    def try_permit(self) -> bool:
        """Take one of `max_concurrent_requests` permits; False: overloaded."""
        if self.permits >= self.settings.max_concurrent_requests:
            return False
        self.permits += 1
        return True

    def release_permit(self) -> None:
        """Give a permit back: the answer is finished, refused or no longer wanted."""
        self.permits -= 1

    def refuses(self, input_tokens: int, need_new: int) -> str | None:
        """The router's message when a request is too long; None: it is not. `need_new` is that of one chunk."""
        return length_problem(input_tokens, need_new, self.settings.max_input_tokens, self.settings.max_total_tokens)

    def submit(
        self, now: float, prompt: Prompt, max_new_tokens: int | None = None, stop_after: int | None = None
    ) -> Entry:
        """A request that has a permit and is not refused; it joins the queue when its tokenizer is through."""
        return self._intake.submit(now, prompt, max_new_tokens, stop_after)

    def cancel(self, entry: Entry) -> None:
        """The client is gone: noticed when the request reaches the head of the queue, or at its next token."""
        entry.cancelled = self._cancelled = True
        self._blocked = False

    def next_ready(self) -> float | None:
        """When the next tokenized request joins the queue; None: none is on its way."""
        validating = self._intake.validating
        return validating[0][0] if validating else None

    def tokens_so_far(self, entry: Entry) -> int:
        """Tokens of the whole answer that a request has got."""
        if not entry.decoding:
            return entry.generated
        return entry.chunk_start + 1 + self._steps - entry.first_step

    # ---- the batching loop ------------------------------------------------------------------------------------

    def step(self, now: float) -> Step | None:
        """Begin the next forward pass; None: there is nothing to do until `next_ready` or a new request.

        The state is at once that after the pass, with times of `now + duration_s`.
        """
        self._intake.take_validated(now)
        settings, dropped = self.settings, list[Entry]()
        if not self._decoding and not self._partial:
            self._decode_next = self._blocked = False
            admitted = self._admission.pick(
                None, settings.max_batch_size, settings.max_batch_prefill_tokens, settings.capacity_tokens, dropped
            )
            if not admitted:
                return Step("none", 0.0, 0, 0, dropped=dropped) if dropped else None
            self._waited = 1
            return self._forward(now, "prefill", admitted, dropped)
        if not self._decode_next and self._queue and not self._blocked:
            concat, admitted = self._pick_more(dropped)
            if admitted:
                self._decode_next = True
                self._waited = 1
                if settings.chunking:
                    return self._forward(now, "prefill", admitted, dropped, concat)
                return self._prefill_alone(now, admitted, dropped, concat)
        self._decode_next = False
        self._waited += 1
        return self._forward(now, "decode", [], dropped)

    def horizon(self, now: float) -> float | None:
        """When the run that `fast_forward(now, inf)` would take ends; None: the next pass is not a plain one."""
        run = self._run(now, float("inf"))
        return None if run is None else now + run[1]

    def fast_forward(self, now: float, until: float) -> Step | None:
        """As `step`, but equal decode passes are taken together: to the one that gives some request its last token, or
        the first that ends at or after `until`.

        Requests that only get further tokens are not named.
        """
        run = self._run(now, until)
        if run is None:
            return self.step(now)
        passes, duration = run
        batch = len(self._decoding)
        self._decode_next = False
        self._steps += passes
        self.passes += passes
        self._waited += passes
        self._cached_tokens += passes * batch
        step = Step("decode", duration, passes, batch)
        if self._finishing[0][0] <= self._steps:
            self._end_finished(now + duration, step)
        return step

    def _run(self, now: float, until: float) -> tuple[int, float] | None:
        """(passes, seconds) of plain decoding from now on, in which nothing can join the batch."""
        if self._partial or not self._decoding or self._cancelled:
            return None
        if not self._blocked or not self.settings.chunking:
            validating = self._intake.validating
            if self._queue or (validating and validating[0][0] <= now and not self._decode_next):
                return None
            if validating and validating[0][0] < until:
                until = validating[0][0]
        batch = len(self._decoding)
        first = self._decode_fixed_s(batch) + self._slope * self._cached_tokens
        growth = self._slope * batch
        passes = _passes_until(first, growth, until - now, self._finishing[0][0] - self._steps)
        return passes, passes * first + growth * (passes * (passes - 1) / 2)

    def _pick_more(self, dropped: list[Entry]) -> tuple[str | None, list[Entry]]:
        """Requests that join the running batch, and why they may."""
        settings = self.settings
        running = len(self._decoding) + len(self._partial)
        room = settings.capacity_tokens - self.reserved_tokens
        if settings.chunking:
            budget = settings.max_batch_prefill_tokens - len(self._decoding)
            budget -= sum(entry.pending for entry in self._partial)
            admitted = self._admission.pick(None, None, budget, room, dropped) if room > 0 and budget > 0 else []
            # Nothing changes for the head of the queue before a running request ends.
            self._blocked = not admitted and bool(self._queue) and not self._partial
            return "chunking", admitted
        if room <= 0:
            return None, []
        waited_enough = self._waited >= settings.max_waiting_tokens
        least = None if waited_enough else int(running * settings.waiting_served_ratio)
        most = None if settings.max_batch_size is None else max(0, settings.max_batch_size - running)
        reason = "wait_exceeded" if waited_enough else "backpressure"
        return reason, self._admission.pick(least, most, settings.max_batch_prefill_tokens, room, dropped)

    # ---- forward passes ---------------------------------------------------------------------------------------

    def _decode_fixed_s(self, batch: int) -> float:
        """Seconds of a decode pass without what its cached tokens take."""
        known = self._fixed.get(batch)
        if known is None:
            padded = self.settings.padded(batch) * (self.settings.speculate + 1)
            known = self._fixed[batch] = self.times.decode_fixed_ms(batch, padded) / 1000.0
        return known

    def _forward(
        self, now: float, method: str, admitted: list[Entry], dropped: list[Entry], concat: str | None = None
    ) -> Step:
        """One pass over the running batch, with the admitted requests merged into it."""
        self._admit(now, admitted)
        partial = self._partial + admitted
        duration = self._pass_seconds(partial, len(self._decoding))
        batch = len(self._decoding) + len(partial)
        step = Step(method, duration, 1, batch, admitted=len(admitted), concat=concat, dropped=dropped)
        self._steps += 1
        self.passes += 1
        self._cached_tokens += len(self._decoding)
        if partial:
            self._partial = []
            self._compute_prompts(now + duration, partial, step)
            self._plan_chunks()
        self._end_finished(now + duration, step)
        return step

    def _prefill_alone(self, now: float, admitted: list[Entry], dropped: list[Entry], concat: str | None) -> Step:
        """Without chunking, new prompts get a pass of their own while the running batch stands still."""
        self._admit(now, admitted)
        duration = self._pass_seconds(admitted, 0)
        step = Step("prefill", duration, 1, self.running + len(admitted), admitted=len(admitted), concat=concat)
        step.dropped = dropped
        self.passes += 1
        self._compute_prompts(now + duration, admitted, step)
        self._end_finished(now + duration, step)
        return step

    def _admit(self, now: float, admitted: list[Entry]) -> None:
        for entry in admitted:
            if entry.started_at is None:
                entry.started_at = now
            self.reserved_tokens += self._admission.held(entry)

    def _pass_seconds(self, prompts: list[Entry], decoding: int) -> float:
        if not prompts:
            return self._decode_fixed_s(decoding) + self._slope * self._cached_tokens
        tokens, squares = 0, 0.0
        for entry in prompts:
            tokens += entry.pending
            squares += entry.pending * (2.0 * entry.computed + entry.pending)
        if not self.settings.paged:
            tokens = len(prompts) * max(entry.pending for entry in prompts)
        return self.times.step_ms(decoding, self._cached_tokens, tokens, squares, len(prompts)) / 1000.0

    def _compute_prompts(self, end: float, prompts: list[Entry], step: Step) -> None:
        """After the pass: whole prompts give their first token, others stay partial."""
        for entry in prompts:
            entry.computed += entry.pending
            entry.pending = 0
            if entry.computed < entry.input_tokens:
                self._partial.append(entry)
                continue
            entry.decoding = True
            entry.first_step = self._steps
            entry.last_token_at = end
            if entry.first_token_at is None:
                entry.first_token_at = end
            step.first.append(entry)
            length = entry.need_new
            if entry.stop_after is not None:
                length = max(1, min(length, entry.stop_after - entry.chunk_start))
            self._decoding[entry.number] = entry
            self._cached_tokens += entry.input_tokens
            heapq.heappush(self._finishing, (self._steps + length - 1, entry.number, entry))

    def _plan_chunks(self) -> None:
        """Share the budget of the next pass among prompts that are not through, the last one first."""
        if not self._partial:
            return
        budget = self.settings.max_batch_prefill_tokens - (self.running - 1)
        for entry in reversed(self._partial):
            entry.pending = max(1, min(entry.input_tokens - entry.computed, budget))
            budget -= entry.pending

    def _end_finished(self, end: float, step: Step) -> None:
        finishing = self._finishing
        while finishing and finishing[0][0] <= self._steps:
            entry = heapq.heappop(finishing)[2]
            if entry.decoding:
                self._leave(entry, end)
                self._conclude(entry, end, step)
        if self._cancelled:
            self._drop_cancelled(end, step)

    def _drop_cancelled(self, end: float, step: Step) -> None:
        """A client's absence shows when its next token cannot be sent."""
        self._cancelled = any(entry.cancelled for entry in self._queue)
        for entry in [entry for entry in self._partial if entry.cancelled]:
            self._partial.remove(entry)
            self._free(entry)
            step.dropped.append(entry)
        for entry in [entry for entry in self._decoding.values() if entry.cancelled]:
            self._leave(entry, end)
            step.dropped.append(entry)
        self._finishing = [item for item in self._finishing if item[2].decoding]
        heapq.heapify(self._finishing)

    def _leave(self, entry: Entry, end: float) -> None:
        entry.generated = self.tokens_so_far(entry)
        entry.last_token_at = end
        entry.decoding = False
        del self._decoding[entry.number]
        self._cached_tokens -= entry.input_tokens + self._steps - entry.first_step
        self._free(entry)

    def _free(self, entry: Entry) -> None:
        self.reserved_tokens -= self._admission.held(entry)
        self._admission.release(entry)
        self._blocked = False

    def _conclude(self, entry: Entry, end: float, step: Step) -> None:
        """The end of an answer, or of a chunk of it: then prompt and text go back to the end of the queue.

        Each chunk may again have `min(max_new_tokens, 1024)` tokens, so that long answers overshoot.
        """
        if entry.stop_after is not None and entry.generated >= entry.stop_after:
            entry.finish_reason = "eos_token"
        elif entry.generated >= entry.max_new_tokens:
            entry.finish_reason = "length"
        else:
            entry.prompt = entry.prompt.longer(entry.generated - entry.chunk_start)
            entry.chunk_start = entry.generated
            entry.need_new = min(entry.max_new_tokens, CHUNK_TOKENS)
            if self.refuses(entry.input_tokens, entry.need_new) is None:
                entry.computed = entry.pending = 0
                entry.queued_at = end
                self._queue.append(entry)
                step.continued.append(entry)
                return
            entry.finish_reason = "error"
        step.finished.append(entry)


def _allocator(settings: Settings) -> Allocator:
    blocks = usable_blocks(settings.capacity_tokens, settings.block_tokens)
    if settings.prefix_caching and settings.paged:
        return RadixAllocator(blocks, settings.block_tokens)
    return SimpleAllocator(blocks, settings.block_tokens)


def _passes_until(first: float, growth: float, seconds: float, most: int) -> int:
    """Passes of `first`, `first + growth`, … seconds until their sum reaches `seconds`; at least 1, at most `most`."""
    if seconds <= first or most <= 1:
        return 1
    if most * first + growth * (most * (most - 1) / 2) <= seconds:
        return most
    if growth <= 0:
        passes = int(seconds / first)
    else:
        half = first - growth / 2
        passes = int((-half + (half * half + 2 * growth * seconds) ** 0.5) / growth)
    # The closed form may be off by one through rounding.
    passes = max(1, min(passes, most))
    while passes > 1 and passes * first + growth * (passes * (passes - 1) / 2) >= seconds:
        passes -= 1
    while passes < most and passes * first + growth * (passes * (passes - 1) / 2) < seconds:
        passes += 1
    return passes
