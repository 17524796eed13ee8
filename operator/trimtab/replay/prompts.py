"""Prompt texts of a wanted length: equal keys give equal texts, equal prefix blocks give equal beginnings.

A word counts as one token, the convention of the simulated engines; real tokenizers need a little more than one
token for most of these words, so lengths are then approximate and the report shows what the server counted.
"""

from collections import OrderedDict

import numpy as np

from trimtab.replay.trace import PREFIX_BLOCK_TOKENS, Trace

# Short, frequent English words: single tokens in the common vocabularies when they follow a space.
_FREQUENT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but"
    " not what all were we when your can said there use an each which she do how their if will up other about out"
    " many then them these so some her would make like him into time has look two more write go see number no way"
    " could people my than first water been call who oil its now find long down day did get come made may part"
)
VOCABULARY = tuple(_FREQUENT.split())
CACHED_BLOCKS = 512


class PromptTexts:
    """Texts for the prompts of a trace."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._blocks: OrderedDict[int, str] = OrderedDict()

    def text(self, index: int) -> str:
        """The prompt of request `index`: about `input_tokens` words."""
        tokens = int(self._trace.input_tokens[index])
        blocks = self._trace.prefix_blocks[index] if self._trace.prefix_blocks is not None else ()
        if not blocks:
            return _words(0, int(self._trace.prompt_key[index]), tokens)
        # Ids name the content, so a last block that is only partly filled has an id of its own: it ends the prompt.
        whole = blocks[: tokens // PREFIX_BLOCK_TOKENS]
        rest = tokens - len(whole) * PREFIX_BLOCK_TOKENS
        parts = [self._block(block) for block in whole]
        if rest:
            last = blocks[len(whole)] if len(whole) < len(blocks) else int(self._trace.prompt_key[index])
            parts.append(_words(2, last, rest))
        return " ".join(parts)

    def _block(self, block: int) -> str:
        text = self._blocks.get(block)
        if text is None:
            text = _words(1, block, PREFIX_BLOCK_TOKENS)
            self._blocks[block] = text
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return text


def _words(space: int, key: int, count: int) -> str:
    """`count` words that begin with the key spelt in words, so that texts of different keys part early."""
    size = len(VOCABULARY)
    head: list[str] = [VOCABULARY[space]]
    rest = key
    while len(head) < min(count, 5):
        rest, digit = divmod(rest, size)
        head.append(VOCABULARY[digit])
    body = np.random.default_rng([space, key]).integers(0, size, max(count - len(head), 0))
    return " ".join(head + [VOCABULARY[i] for i in body.tolist()])
