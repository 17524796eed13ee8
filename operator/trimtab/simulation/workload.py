"""A trace in the form that the simulator walks through."""

from dataclasses import dataclass

from trimtab.replay.trace import PREFIX_BLOCK_TOKENS, Trace
from trimtab.simulation.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival; plain lists, because the simulator looks at single elements."""

    arrival_s: list[float]
    prompts: list[Prompt]
    output_tokens: list[int]
    """Tokens of each answer."""
    max_new_tokens: int | None
    """What clients ask for at most, the answer ending by itself before; None: exactly its length."""
    keys: list[int]
    """Equal keys: equal requests."""
    span_s: float

    def __len__(self) -> int:
        return len(self.arrival_s)


def from_trace(trace: Trace, max_new_tokens: int | None = None) -> Workload:
    """The trace's requests. With `max_new_tokens` the engine reserves that many tokens for each answer."""
    tokens = trace.input_tokens.tolist()
    keys = trace.prompt_key.tolist()
    if trace.prefix_blocks is None:
        prompts = [Prompt.whole(key, count) for key, count in zip(keys, tokens, strict=True)]
    else:
        prompts = [
            Prompt(count, blocks, PREFIX_BLOCK_TOKENS) if blocks else Prompt.whole(-1 - key, count)
            for key, count, blocks in zip(keys, tokens, trace.prefix_blocks, strict=True)
        ]
    return Workload(trace.arrival_s.tolist(), prompts, trace.output_tokens.tolist(), max_new_tokens, keys, trace.span_s)
