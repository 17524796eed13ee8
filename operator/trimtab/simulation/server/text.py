"""Tokens and answers without a model: deterministic, cheap, and of exactly known length.

A token is up to eight characters of a word together with the white space before it, so that a short English word
counts as one. Answers are words drawn from a hash of everything that decides a greedy answer: equal requests get equal
answers, different ones different.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.simulation.prompts import Prompt

PIECE = re.compile(r"\s*\S{1,8}|\s+$")
VOCABULARY_BITS = 10
EOS_ID, EOS_TEXT = 2, "</s>"
_MULTIPLIER, _INCREMENT, _MASK = 6364136223846793005, 1442695040888963407, 2**64 - 1
"""Knuth's MMIX generator."""


def _vocabulary() -> tuple[str, ...]:
    starts = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "br", "tr")
    vowels = ("a", "e", "i", "o", "u", "ai", "ou", "ea")
    ends = ("", "n", "r", "s", "l", "t", "nd", "st")
    return tuple(f" {start}{vowel}{end}" for start in starts for vowel in vowels for end in ends)


VOCABULARY = _vocabulary()
"""1,024 words of one token each, ASCII letters after a blank: safe inside JSON."""
LOGPROBS = tuple(f"-{0.01 + 0.003 * index:.4f}" for index in range(256))


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    number: int
    text: str
    logprob: str
    special: bool = False


class Answer:
    """The tokens of one answer, made as they are asked for."""

    __slots__ = ("_fixed", "_position", "_state", "characters", "text")

    def __init__(self, seed: bytes, fixed: Sequence[str] = ()) -> None:
        self._state = int.from_bytes(seed[:8], "little")
        self._fixed = fixed
        self._position = 0
        self.text: list[str] = []
        self.characters = 0

    def next(self, *, last: bool = False, eos: bool = False) -> Token:
        """The next token; with `last` and `eos` the one that ends the sequence."""
        if last and eos:
            return Token(EOS_ID, EOS_TEXT, LOGPROBS[0], special=True)
        if self._position < len(self._fixed):
            text = self._fixed[self._position]
            self._position += 1
            self.text.append(text)
            return Token(token_id(text), text, LOGPROBS[1])
        self._state = state = (self._state * _MULTIPLIER + _INCREMENT) & _MASK
        number = state >> (64 - VOCABULARY_BITS)
        text = VOCABULARY[number]
        self.text.append(text)
        return Token(number + 100, text, LOGPROBS[(state >> 40) & 255])

    def generated_text(self) -> str:
        """All text so far."""
        return "".join(self.text)


def pieces(text: str) -> list[str]:
    """The text cut into tokens; joined they are the text again."""
    return PIECE.findall(text)


def token_id(piece: str) -> int:
    """A stable number for a token."""
    return 100 + zlib.crc32(piece.encode()) % 127_900


def to_prompt(parts: Sequence[str]) -> Prompt:
    """What the engine needs to know of a tokenized prompt."""
    return Prompt(len(parts), tuple(map(hash, parts)), 1)


def spans(text: str) -> Iterator[tuple[int, str, int, int]]:
    """(id, text, start, stop) of each token, as /tokenize answers; offsets count characters."""
    position = 0
    for piece in pieces(text):
        yield token_id(piece), piece, position, position + len(piece)
        position += len(piece)


def answer_seed(prompt: str, decisive: Mapping[str, Any]) -> bytes:
    """Eight or more bytes that depend on the prompt and everything that changes the answer."""
    state = hashlib.blake2b(prompt.encode(), digest_size=16)
    state.update(json.dumps(decisive, sort_keys=True, default=str).encode())
    return state.digest()


def stop_position(answer: Answer, stops: Sequence[str], most: int) -> int | None:
    """After how many tokens a stop string would first appear; None: not within `most`. Uses the answer up."""
    text, longest = "", max(len(stop) for stop in stops)
    for count in range(1, most + 1):
        text = text[-longest:] + answer.next().text
        if any(stop in text for stop in stops):
            return count
    return None


def chat_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
    """The chat template: a marker of one token before each message and before the answer."""
    lines = [f"<|{message.get('role', 'user')}|> {content_text(message.get('content'))}" for message in messages]
    if tools:
        lines.insert(0, f"<|tools|> {json.dumps(tools, sort_keys=True)}")
    return "\n".join([*lines, "<|bot|>"])


def content_text(content: Any) -> str:
    """Text of a message's content; images become the markdown that TGI makes of them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else []:
        if part.get("type") == "image_url":
            parts.append(f"![]({part.get('image_url', {}).get('url', '')})")
        else:
            parts.append(str(part.get("text", "")))
    return "".join(parts)


def json_example(schema: Any, words: Answer) -> Any:
    """A small document that satisfies the common parts of a JSON schema."""
    if not isinstance(schema, Mapping):
        return words.next().text.strip()
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for branch in ("anyOf", "oneOf"):
        if schema.get(branch):
            return json_example(schema[branch][0], words)
    match schema.get("type", "object" if "properties" in schema else "string"):
        case "object":
            return {name: json_example(part, words) for name, part in schema.get("properties", {}).items()}
        case "array":
            return [json_example(schema.get("items", {}), words) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer" | "number":
            return max(schema.get("minimum", 0), words.next().number % 100)
        case "boolean":
            return words.next().number % 2 == 0
        case "null":
            return None
        case _:
            return words.next().text.strip()
