"""Requests on their way through the engine, and what a forward pass did to them."""

from dataclasses import dataclass, field

from trimtab.simulation.blocks import Allocation
from trimtab.simulation.prompts import Prompt

CHUNK_TOKENS = 1024
"""The router asks the shards for at most this many tokens at once (router/src/validation.rs)."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request in the engine; times are those of the caller's clock, in seconds."""

    number: int
    prompt: Prompt
    max_new_tokens: int
    stop_after: int | None
    """Tokens after which the model ends its answer by itself; None: never."""
    arrived: float
    share_prefix: bool = True
    """False where the engine computes the whole prompt (prompt log-probabilities were asked for)."""
    need_new: int = 0
    """Tokens to generate in this chunk of the answer."""
    queued_at: float = 0.0
    """When validation was over and it joined the queue."""
    started_at: float | None = None
    """When it first joined a batch."""
    first_token_at: float | None = None
    last_token_at: float | None = None
    generated: int = 0
    """Tokens of the whole answer so far, up to the last pass at which the engine counted them."""
    chunk_start: int = 0
    """`generated` when this chunk of the answer began."""
    allocation: Allocation | None = None
    computed: int = 0
    """Prompt tokens whose keys and values are there."""
    pending: int = 0
    """Prompt tokens that the next pass computes."""
    first_step: int = 0
    """Step count of the engine right after the pass that gave the chunk's first token."""
    decoding: bool = False
    cancelled: bool = False
    finish_reason: str | None = None
    """`length` or `eos_token` once it has ended; `error` when a continuation no longer fits."""
    validation_s: float = 0.0
    """Time of tokenization and checks, without waiting for the tokenizer."""
    payload: object = None
    """The caller's own."""

    @property
    def input_tokens(self) -> int:
        """Length of the prompt, with the answer so far when this is a continuation."""
        return self.prompt.tokens


@dataclass(slots=True)
class Step:
    """One forward pass (or several equal ones), finished `duration_s` after it was begun."""

    method: str
    """`prefill` or `decode`: which call of the shards it is."""
    duration_s: float
    passes: int
    """Forward passes; more than one only from `Engine.fast_forward`."""
    batch: int
    """Requests in the running batch during the pass."""
    first: list[Entry] = field(default_factory=list)
    """Got the first token of their answer (or of a further chunk of it)."""
    finished: list[Entry] = field(default_factory=list)
    """Ended in this pass, in its last one if there are several."""
    admitted: int = 0
    """Requests that joined a batch for this pass."""
    concat: str | None = None
    """Why they joined a running batch: `chunking`, `backpressure`, `wait_exceeded`."""
    dropped: list[Entry] = field(default_factory=list)
    """Left before or in this pass because their client is gone."""
    continued: list[Entry] = field(default_factory=list)
    """Ended a chunk of their answer and queue again for the next one."""
