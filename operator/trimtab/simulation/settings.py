"""What an engine runs with once it has warmed up."""

from dataclasses import dataclass

CUDA_GRAPHS = (1, 2, 4, 8, 16, 32)
"""Batch sizes whose decode pass is captured (launcher default)."""

TOKENIZER_S_PER_TOKEN = 1e-6
"""ESTIMATE: the tokenizers library states a gigabyte of text in under 20 s on a server's CPU (its README); one thread
of some tens handles about a million tokens a second."""
TOKENIZER_S = 5e-5
"""ESTIMATE of the rest of validation."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the scheduler looks at. The names are those of the launcher's flags."""

    max_input_tokens: int
    max_total_tokens: int
    max_batch_prefill_tokens: int
    capacity_tokens: int
    """Tokens that the KV cache holds: what the router logs as max batch total tokens."""
    max_concurrent_requests: int = 128
    max_batch_size: int | None = None
    waiting_served_ratio: float = 0.3
    max_waiting_tokens: int = 20
    validation_workers: int = 2
    block_tokens: int = 1
    prefix_caching: bool = True
    chunking: bool = True
    paged: bool = True
    """False: no blocks, prompts are padded to the longest (models that run through transformers)."""
    speculate: int = 0
    cuda_graphs: tuple[int, ...] = CUDA_GRAPHS

    def padded(self, batch: int) -> int:
        """Batch that the decode kernels see: the next captured size, or the batch itself beyond the largest."""
        width = self.speculate + 1
        for size in self.cuda_graphs:
            if size >= batch and size >= width:
                return size
        return batch


def length_problem(input_tokens: int, need_new: int, max_input_tokens: int, max_total_tokens: int) -> str | None:
    """The router's message when a request is too long (router/src/validation.rs); None: it is not.

    `need_new` is what is asked of one chunk of the answer.
    """
    if input_tokens + need_new > max_total_tokens or need_new <= 0:
        return (
            f"`inputs` tokens + `max_new_tokens` must be <= {max_total_tokens}. "
            f"Given: {input_tokens} `inputs` tokens and {need_new} `max_new_tokens`"
        )
    if input_tokens > max_input_tokens:
        return f"`inputs` must have less than {max_input_tokens} tokens. Given: {input_tokens}"
    return None
