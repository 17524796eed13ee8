"""A chat as what must stay together: the leading instructions, then turns. A turn begins with a user's message and
reaches to the next one, so that tool calls are never separated from their results."""

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
_INSTRUCTIONS = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages by role in the plan; the concatenation is the original order."""

    pinned: tuple[Message, ...]
    turns: tuple[tuple[Message, ...], ...]

    def messages(self, start: int = 0) -> list[Message]:
        """Instructions and the turns from `start` on."""
        return [*self.pinned, *(message for turn in self.turns[start:] for message in turn)]


def parse_conversation(messages: Any) -> Conversation | None:
    """None when `messages` is no list of objects: the engine will say what is wrong with it."""
    if type(messages) is not list or not messages or not all(type(message) is dict for message in messages):
        return None
    first = 0
    while first < len(messages) and messages[first].get("role") in _INSTRUCTIONS:
        first += 1
    turns: list[list[Message]] = []
    for message in messages[first:]:
        if not turns or message.get("role") == "user":
            turns.append([])
        turns[-1].append(message)
    return Conversation(tuple(messages[:first]), tuple(tuple(turn) for turn in turns))


def text_of(message: Message) -> str:
    """All text of a message, tool calls included, as far as it counts; images count nothing."""
    parts: list[str] = []
    content = message.get("content")
    if type(content) is str:
        parts.append(content)
    elif type(content) is list:
        parts += [chunk["text"] for chunk in content if type(chunk) is dict and type(chunk.get("text")) is str]
    calls = message.get("tool_calls")
    if type(calls) is list and calls:
        parts.append(str(calls))
    return "\n".join(parts)


def has_images(messages: list[Message]) -> bool:
    """Whether a message carries something else than text, whose tokens cannot be counted here."""
    for message in messages:
        content = message.get("content")
        if type(content) is list and any(type(c) is not dict or c.get("type") != "text" for c in content):
            return True
    return False


def with_note(conversation: Conversation, start: int, note: str) -> list[Message]:
    """The messages from turn `start` on, with `note` (a summary of what was before) where every template allows text.

    It joins a system prompt of plain text, else the first kept user message, else it becomes a user message.
    """
    messages = conversation.messages(start)
    pinned = len(conversation.pinned)
    places = [pinned - 1] if pinned else []
    if len(messages) > pinned and messages[pinned].get("role") == "user":
        places.append(pinned)
    for place in places:
        content = messages[place].get("content")
        if type(content) is str:
            joined = f"{content}\n\n{note}" if place < pinned else f"{note}\n\n{content}"
            return [*messages[:place], {**messages[place], "content": joined}, *messages[place + 1 :]]
    return [*messages[:pinned], {"role": "user", "content": note}, *messages[pinned:]]
