"""What a prompt is to the engine: how long it is and which beginnings it shares with others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens known by the identity of their units.

    `keys[i]` stands for tokens `i x unit` to `(i + 1) x unit` (the last unit may be shorter). Prompts with equal
    leading keys share these tokens, so equal keys must mean equal tokens and equal `unit`. Tokenized text has a unit of
    one token, a trace of 512-token block hashes one of 512, a prompt that is only repeated whole has a single key.
    """

    tokens: int
    keys: tuple[int, ...]
    unit: int

    @classmethod
    def whole(cls, key: int, tokens: int) -> "Prompt":
        """A prompt that shares tokens only with exact repeats of itself."""
        return cls(tokens, (key,), tokens)

    def longer(self, tokens: int, keys: tuple[int, ...] = ()) -> "Prompt":
        """The prompt with generated text appended: continuation after a chunk of the answer.

        Without `keys` the appended tokens share nothing with other prompts.
        """
        if self.unit == 1 and len(keys) == tokens:
            return Prompt(self.tokens + tokens, self.keys + keys, 1)
        return Prompt(self.tokens + tokens, self.keys, self.unit)

    def known(self, end: int) -> int:
        """Of the first `end` tokens, how many have an identity."""
        return min(end, self.tokens, len(self.keys) * self.unit)
