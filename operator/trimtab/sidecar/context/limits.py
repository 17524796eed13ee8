"""How long a prompt may be."""

from dataclasses import dataclass
from typing import Any

from trimtab.sidecar.interfaces import Call, Route

ENGINE_CHUNK = 1024
"""TGI checks input + min(max_new_tokens, 1024) against its total; a longer answer is generated in further rounds."""
HANDLED = frozenset({Route.CHAT, Route.COMPLETIONS, Route.GENERATE, Route.GENERATE_STREAM, Route.COMPAT})
"""Routes whose prompts are counted; bodies of the others are of uncertain shape and go to the engine as they are."""


@dataclass(frozen=True, slots=True)
class WindowLimits:
    """In tokens: the longest prompt, and the longest prompt and answer together."""

    max_input: int
    max_total: int

    def budget(self, answer: int) -> int:
        """Tokens a prompt may have beside an answer of `answer` tokens; at least 1."""
        return max(1, min(self.max_input, self.max_total - answer))

    def describe(self, answer: int) -> str:
        """The limits in words, for an error message."""
        return f"maxInputTokens {self.max_input}, maxTotalTokens {self.max_total}, {answer} of them for the answer"


def answer_tokens(call: Call) -> int:
    """Tokens the engine sets aside for the answer when it admits the request; 1 when the client named no number."""
    body: dict[str, Any] = call.body
    if call.route is Route.CHAT or call.route is Route.COMPLETIONS:
        asked = body.get("max_tokens", body.get("max_completion_tokens"))
    else:
        parameters = body.get("parameters")
        asked = parameters.get("max_new_tokens") if type(parameters) is dict else None
    return min(asked, ENGINE_CHUNK) if type(asked) is int and asked > 0 else 1


def surely_fits(call: Call, budget: int) -> bool:
    """A cheap proof that the prompt fits: a token is at least one byte of text, and JSON is no shorter than its text.

    Room is left for what a chat template adds by itself. Tools are excluded: a template may print them longer than
    they came.
    """
    if call.body.get("tools") is not None:
        return False
    messages = call.body.get("messages")
    added = 16 * len(messages) if type(messages) is list else 0
    return len(call.raw) + added + 512 <= budget
