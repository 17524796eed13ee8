"""Older turns condensed by the engine itself. A summary is a deterministic request (temperature 0) keyed by what it
condenses, so equal conversations of one tenant share it, and concurrent requests for it are made once."""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from trimtab.sidecar.context.conversation import Message, text_of
from trimtab.sidecar.context.counting import Counter, CountError
from trimtab.sidecar.context.window import Node
from trimtab.sidecar.interfaces import EngineCall

INSTRUCTION = (
    "Condense the conversation below for the assistant who will continue it. Keep names, numbers, dates, decisions,"
    " open questions, and what the user asked for. Write plain statements in the language of the conversation,"
    " no comments."
)
MERGE_INSTRUCTION = (
    "Merge the summaries below, which are parts of one conversation in order, and what follows them into one summary."
    " Keep names, numbers, dates, decisions and open questions. Write plain statements, no comments."
)
NOTE_HEAD = "Summary of the earlier conversation:"
TIMEOUT = 60.0
"""Seconds for one summary; after that the older turns are left out instead, and the answer's header says so."""
MEMO_BYTES = 16 * 1024 * 1024
MAX_PIECES = 32
_PROMPT_TOKENS = 120  # instruction, template and separators, on the long side


class SummaryError(Exception):
    """The engine gave no summary."""


def transcript(turns: Sequence[Sequence[Message]]) -> str:
    """Messages as plain text, one paragraph each."""
    lines = []
    for turn in turns:
        for message in turn:
            role = message.get("role")
            lines.append(f"{role if type(role) is str else 'unknown'}: {text_of(message)}")
    return "\n\n".join(lines)


def cut_text(text: str, pieces: int) -> list[str]:
    """`text` in about `pieces` pieces of similar length, cut at white space where there is some nearby."""
    size = max(1, -(-len(text) // pieces))
    out: list[str] = []
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start + size // 2, end), text.rfind("\n", start + size // 2, end))
            end = space + 1 if space >= 0 else end
        out.append(text[start:end])
        start = end
    return out


@dataclass(frozen=True, slots=True)
class Source:
    """A conversation to be condensed."""

    turns: Sequence[Sequence[Message]]
    scope: bytes
    model: str | None
    room: int  # tokens a prompt for a summary may have
    digests: tuple[bytes, ...] = field(init=False)  # of each turn

    def __post_init__(self) -> None:
        texts = (json.dumps(list(turn)).encode() for turn in self.turns)
        object.__setattr__(self, "digests", tuple(blake2b(text, digest_size=16).digest() for text in texts))

    def key(self, node: Node, max_tokens: int) -> bytes:
        """Covers tenant, adapter, sizes, the shape of the summary and all that it condenses."""
        about = json.dumps([self.model, self.room, max_tokens, _shape(node, node.start)]).encode()
        head = b"".join(len(part).to_bytes(4, "big") + part for part in (self.scope, about))
        return blake2b(head + b"".join(self.digests[node.start : node.end]), digest_size=32).digest()


def _shape(node: Node, base: int) -> list[Any]:
    return [node.start - base, node.end - base, [_shape(child, base) for child in node.children]]


@dataclass(slots=True)
class Summariser:
    """Makes summaries through the engine and remembers them (bounded; per tenant by their keys)."""

    engine: EngineCall
    counter: Counter
    max_tokens: int
    timeout: float = TIMEOUT
    made: int = 0
    reused: int = 0
    failed: int = 0
    _memo: OrderedDict[bytes, str] = field(default_factory=OrderedDict)
    _memo_bytes: int = 0
    _running: dict[bytes, asyncio.Task[str]] = field(default_factory=dict)

    async def summarise(self, nodes: Sequence[Node], source: Source) -> str:
        """The note that stands for the turns that `nodes` cover. Raises SummaryError."""
        parts = await asyncio.gather(*(self._node(node, source) for node in nodes))
        return "\n\n".join([NOTE_HEAD, *parts])

    async def _node(self, node: Node, source: Source) -> str:
        key = source.key(node, self.max_tokens)
        known = self._memo.get(key)
        if known is not None:
            self._memo.move_to_end(key)
            self.reused += 1
            return known
        task = self._running.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._make(key, node, source))
            self._running[key] = task
            task.add_done_callback(lambda done: self._settled(key, done))
        # One who leaves does not take the summary away from those who wait for it too.
        return await asyncio.shield(task)

    def _settled(self, key: bytes, task: asyncio.Task[str]) -> None:
        self._running.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            self.failed += 1

    async def _make(self, key: bytes, node: Node, source: Source) -> str:
        said = transcript(source.turns[node.said_from : node.end])
        if node.children:
            parts = await asyncio.gather(*(self._node(child, source) for child in node.children))
            said = "\n\n".join([*(f"Summary: {part}" for part in parts), *([said] if said else [])])
        text = await self._condense(MERGE_INSTRUCTION if node.children else INSTRUCTION, said, source)
        self._remember(key, text)
        return text

    async def _condense(self, instruction: str, said: str, source: Source) -> str:
        """One call, or several in a row where the text is longer than the model's window."""
        pieces = await self._pieces(said, source.room - _PROMPT_TOKENS - self.max_tokens)
        if len(pieces) > MAX_PIECES:
            raise SummaryError(f"a block is longer than {MAX_PIECES} prompts")
        text = await self._ask(f"{instruction}\n\n{pieces[0]}", source.model)
        for piece in pieces[1:]:
            text = await self._ask(f"{MERGE_INSTRUCTION}\n\nSummary: {text}\n\n{piece}", source.model)
        return text

    async def _pieces(self, text: str, room: int) -> list[str]:
        if room < 1:
            raise SummaryError("the model's window leaves no room for a summary")
        try:
            (tokens,) = await self.counter.texts([text])
        except CountError as error:
            raise SummaryError(str(error)) from error
        if tokens <= room:
            return [text]
        parts = cut_text(text, -(-tokens // room) + 1)
        if len(parts) < 2 or len(parts) > MAX_PIECES:
            raise SummaryError(f"a block of {tokens} tokens does not fit {room} in pieces")
        pieces: list[str] = []
        for part in parts:
            pieces += await self._pieces(part, room)
        return pieces

    async def _ask(self, prompt: str, model: str | None) -> str:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
            "stream": False,
        }
        if model is not None:
            body["model"] = model
        try:
            async with asyncio.timeout(self.timeout):
                status, answer = await self.engine("/v1/chat/completions", json.dumps(body).encode())
            text = json.loads(answer)["choices"][0]["message"]["content"] if status == 200 else None
        except (OSError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise SummaryError(type(error).__name__) from error
        if not isinstance(text, str) or not text.strip():
            raise SummaryError(f"the engine answered {status}")
        self.made += 1
        return text.strip()

    def _remember(self, key: bytes, text: str) -> None:
        self._memo[key] = text
        self._memo_bytes += len(text.encode("utf-8", "replace")) + 200
        while self._memo_bytes > MEMO_BYTES:
            _, dropped = self._memo.popitem(last=False)
            self._memo_bytes -= len(dropped.encode("utf-8", "replace")) + 200
