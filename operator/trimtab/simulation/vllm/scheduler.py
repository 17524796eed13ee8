"""vLLM 0.11's V1 scheduler as a state machine: token budget, chunked prefill, KV blocks, preemption by recomputing.

Rules: vllm/v1/core/sched/scheduler.py and vllm/v1/core/kv_cache_manager.py of tag v0.11.0, policy `fcfs`. There is no
prefix cache. No clock: callers say when a request arrives and when a step begins, and are told how long it takes.
"""

import math
from collections import deque
from dataclasses import dataclass, field

from trimtab.catalog.steptime import StepTimeModel

CUDA_GRAPHS = (1, 2, 4, *range(8, 513, 8))
"""Sizes that are captured by default, up to 512 and twice `max_num_seqs` (vllm/config/vllm.py)."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """All that the scheduler looks at. The names are those of the flags."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    """Tokens of one step: one for each decoding request, the rest for prompts."""
    num_gpu_blocks: int
    """Blocks of the KV cache; one of them is never given out (the null block of block_pool.py)."""
    block_size: int = 16
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    """Most tokens of one prompt in one step; 0: no limit."""
    cuda_graphs: tuple[int, ...] = CUDA_GRAPHS

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests may hold."""
        return max(0, self.num_gpu_blocks - 1)

    def padded(self, batch: int) -> int:
        """Batch that the decode kernels see."""
        most = min(2 * self.max_num_seqs, 512)
        return next((size for size in self.cuda_graphs if batch <= size <= most), batch)


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine; times are those of the caller's clock, in seconds."""

    number: int
    prompt_tokens: int
    max_tokens: int
    stop_after: int | None
    """Tokens after which the answer ends by itself; None: never."""
    arrived: float
    generated: int = 0
    computed: int = 0
    """Tokens whose keys and values are there."""
    blocks: int = 0
    scheduled_at: float | None = None
    """When it was first part of a step."""
    first_token_at: float | None = None
    last_token_at: float | None = None
    preemptions: int = 0
    finish_reason: str | None = None
    """`length`, `stop` or `abort` once it has ended."""

    @property
    def tokens(self) -> int:
        """Prompt and answer so far."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True)
class Iteration:
    """One engine step, finished `duration_s` after it was begun."""

    duration_s: float
    tokens: int
    """Tokens computed: one for each decoding request and those of prompt chunks."""
    batch: int
    """Requests that took part."""
    emitted: list[Sequence] = field(default_factory=list)
    """Got their next token."""
    finished: list[Sequence] = field(default_factory=list)
    preempted: int = 0


class Scheduler:
    """One engine. `submit` requests, then call `step` whenever the step before is over."""

    def __init__(self, settings: VllmSettings, times: StepTimeModel) -> None:
        self.settings = settings
        self.times = times
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.free_blocks = settings.usable_blocks
        self._numbers = 0

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that is held, 0 to 1."""
        usable = self.settings.usable_blocks
        return 1.0 - self.free_blocks / usable if usable else 0.0

    def submit(self, now: float, prompt_tokens: int, max_tokens: int, stop_after: int | None = None) -> Sequence:
        """A request that fits the context; it waits at the end of the queue."""
        self._numbers += 1
        sequence = Sequence(self._numbers, prompt_tokens, max_tokens, stop_after, now)
        self.waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """The client is gone: the request leaves at once."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = "abort"
        self._free(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def step(self, now: float) -> Iteration | None:
        """Begin the next step; None: there is nothing to do.

        The state is at once that after the step, with times of `now + duration_s`.
        """
        if not self.running and not self.waiting:
            return None
        shares: dict[Sequence, int] = {}
        budget, preempted = self._schedule_running(shares)
        if not preempted:
            self._schedule_waiting(now, shares, budget)
        if not shares and not preempted:
            return None
        iteration = Iteration(self._seconds(shares), sum(shares.values()), len(shares), preempted=preempted)
        self._compute(now + iteration.duration_s, shares, iteration)
        return iteration

    def _schedule_running(self, shares: dict[Sequence, int]) -> tuple[int, int]:
        """Give running requests their tokens, oldest first; returns (budget left, requests preempted)."""
        budget, preempted, position = self.settings.max_num_batched_tokens, 0, 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            share = min(self._wanted(sequence), budget)
            while not self._allocate(sequence, share):
                # The latest gives way; it may be the request itself.
                latest = self.running.pop()
                self._preempt(latest)
                preempted += 1
                if latest is sequence:
                    return budget, preempted
            shares[sequence] = share
            budget -= share
            position += 1
        return budget, preempted

    def _schedule_waiting(self, now: float, shares: dict[Sequence, int], budget: int) -> None:
        settings, skipped = self.settings, list[Sequence]()
        while self.waiting and budget > 0 and len(self.running) < settings.max_num_seqs:
            sequence = self.waiting[0]
            share = self._wanted(sequence)
            if share > budget and not settings.chunked_prefill:
                skipped.append(self.waiting.popleft())
                continue
            share = min(share, budget)
            if not self._allocate(sequence, share):
                break
            self.running.append(self.waiting.popleft())
            if sequence.scheduled_at is None:
                sequence.scheduled_at = now
            shares[sequence] = share
            budget -= share
        self.waiting.extendleft(reversed(skipped))

    def _wanted(self, sequence: Sequence) -> int:
        missing = sequence.tokens - sequence.computed
        threshold = self.settings.long_prefill_token_threshold
        return min(missing, threshold) if threshold > 0 else missing

    def _allocate(self, sequence: Sequence, share: int) -> bool:
        """Take the blocks that the next `share` tokens need."""
        needed = math.ceil((sequence.computed + share) / self.settings.block_size) - sequence.blocks
        if needed > self.free_blocks:
            return False
        if needed > 0:
            sequence.blocks += needed
            self.free_blocks -= needed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """All its keys and values are dropped; it is first in the queue and computes prompt and answer again."""
        self._free(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = 0

    def _seconds(self, shares: dict[Sequence, int]) -> float:
        decoding = cached = tokens = prompts = 0
        squares = 0.0
        for sequence, share in shares.items():
            if share == 1 and sequence.computed:
                decoding += 1
                cached += sequence.computed
            else:
                prompts += 1
                tokens += share
                squares += share * (2.0 * sequence.computed + share)
        if prompts:
            return self.times.step_ms(decoding, cached, tokens, squares, prompts) / 1000.0
        if not decoding:
            return self.times.host_ms / 1000.0
        return self.times.decode_ms(decoding, cached, self.settings.padded(decoding)) / 1000.0

    def _compute(self, end: float, shares: dict[Sequence, int], iteration: Iteration) -> None:
        for sequence, share in shares.items():
            sequence.computed += share
            if sequence.computed < sequence.tokens:
                continue
            sequence.generated += 1
            if sequence.first_token_at is None:
                sequence.first_token_at = end
            sequence.last_token_at = end
            iteration.emitted.append(sequence)
            if sequence.stop_after is not None and sequence.generated >= sequence.stop_after:
                sequence.finish_reason = "stop"
            elif sequence.generated >= sequence.max_tokens or sequence.tokens >= self.settings.max_model_len:
                sequence.finish_reason = "length"
            else:
                continue
            self._free(sequence)
            iteration.finished.append(sequence)
        if iteration.finished:
            self.running = [sequence for sequence in self.running if sequence.finish_reason is None]
