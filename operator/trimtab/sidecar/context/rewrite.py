"""The policies: what becomes of a conversation or a prompt that does not fit. Each returns the new messages or text and
what was done, or None where the policy cannot help."""

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.sidecar.context.conversation import Conversation, Message, text_of, with_note
from trimtab.sidecar.context.counting import Counter
from trimtab.sidecar.context.summary import Source, Summariser, SummaryError
from trimtab.sidecar.context.window import Node, chain, find_cuts, tree

MAX_BLOCKS = 64
"""Blocks a conversation is condensed in at most; the oldest of a longer one are taken together."""
FANOUT = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """Token counts of a conversation: `turns` each with its share of the template's own tokens."""

    conversation: Conversation
    fixed: int  # instructions, tools, template
    turns: tuple[int, ...]
    budget: int
    low_water: float
    keep_last: int

    @property
    def room(self) -> int:
        """Tokens left for turns."""
        return self.budget - self.fixed


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The new messages, and words for the answer's header."""

    messages: list[Message]
    note: str


async def measure(
    conversation: Conversation, total: int, counter: Counter, *, budget: int, low_water: float, keep_last: int
) -> Plan:
    """Spread the prompt's `total` tokens over instructions and turns. Raises CountError."""
    messages = conversation.messages()
    counts = await counter.texts([text_of(message) for message in messages])
    # What the template adds is spread evenly over the messages, tools and openings go to the fixed part.
    added = max(0, total - sum(counts)) // max(1, len(messages))
    added = min(added, 16)
    place = len(conversation.pinned)
    turns: list[int] = []
    for turn in conversation.turns:
        turns.append(sum(counts[place : place + len(turn)]) + added * len(turn))
        place += len(turn)
    return Plan(conversation, max(0, total - sum(turns)), tuple(turns), budget, low_water, keep_last)


def slide(plan: Plan) -> Rewritten | None:
    """Keep instructions and the latest turns; None when the last turn alone is too long."""
    start = find_cuts(plan.turns, plan.room, low_water=plan.low_water, keep_last=plan.keep_last)[-1]
    if sum(plan.turns[start:]) > plan.room:
        return None
    return Rewritten(plan.conversation.messages(start), f"slidingWindow; dropped-turns={start}")


async def truncate(plan: Plan, counter: Counter) -> Rewritten | None:
    """Drop the oldest turns whole, then the beginning of the oldest text left; instructions stay whole.

    None when instructions alone fill the window. Raises CountError.
    """
    if plan.room < 1 or not plan.turns:
        return None
    start, used = len(plan.turns) - 1, plan.turns[-1]
    while start > 0 and used + plan.turns[start - 1] <= plan.room:
        start -= 1
        used += plan.turns[start]
    messages = plan.conversation.messages(start)
    if used <= plan.room:
        return Rewritten(messages, f"truncate; dropped-turns={start}")
    return await _behead(plan, messages, used - plan.room, counter)


async def _behead(plan: Plan, messages: list[Message], excess: int, counter: Counter) -> Rewritten | None:
    """Cut `excess` tokens off the beginnings of the last turn's texts, oldest first."""
    cut = 0
    for place in range(len(plan.conversation.pinned), len(messages)):
        content = messages[place].get("content")
        if type(content) is not str or not content or excess <= 0:
            continue
        (tokens,) = await counter.texts([content])
        kept = await counter.tail(content, max(1, tokens - excess))
        messages[place] = {**messages[place], "content": kept}
        gone = tokens - max(1, tokens - excess)
        excess -= gone
        cut += gone
    if excess > 0:
        return None
    return Rewritten(messages, f"truncate; dropped-turns={len(plan.turns) - 1}; cut-tokens={cut}")


async def condense(
    plan: Plan, summariser: Summariser, *, hierarchical: bool, scope: bytes, model: str | None, prompt_room: int
) -> Rewritten | None:
    """Replace older turns by a summary, or by summaries of several levels.

    Falls back to the sliding window when there is no room for a summary or the engine gives none, and says so.
    """
    name = "hierarchical" if hierarchical else "summarize"
    most = min(FANOUT, max(1, plan.room // 3 // summariser.max_tokens)) if hierarchical else 1
    room = plan.room - most * summariser.max_tokens - 16
    start = 0
    reason = "no-room"
    if room > 0:
        cuts = find_cuts(plan.turns, room, low_water=plan.low_water, keep_last=plan.keep_last)
        start = cuts[-1]
        if start and sum(plan.turns[start:]) <= room:
            nodes = plan_summaries(cuts, hierarchical=hierarchical, most=most)
            source = Source(plan.conversation.turns[:start], scope, model, prompt_room)
            try:
                note = await summariser.summarise(nodes, source)
                return Rewritten(
                    with_note(plan.conversation, start, note),
                    f"{name}; condensed-turns={start}; summaries={len(nodes)}; levels={_levels(nodes)}",
                )
            except SummaryError:
                reason = "summary-failed"
    slid = slide(plan)
    return None if slid is None else Rewritten(slid.messages, f"{slid.note}; instead-of={name}; reason={reason}")


def plan_summaries(cuts: Sequence[int], *, hierarchical: bool, most: int) -> tuple[Node, ...]:
    """The summaries that stand for the turns before the last cut."""
    if len(cuts) > MAX_BLOCKS + 1:
        cuts = (cuts[0], *cuts[-MAX_BLOCKS:])
    if hierarchical:
        return tree(cuts, fanout=FANOUT, most=most)
    node = chain(cuts)
    return (node,) if node is not None else ()


def _levels(nodes: Sequence[Node]) -> int:
    return max((node.level for node in nodes), default=0) + 1
