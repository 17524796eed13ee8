"""Where a conversation is cut, as pure functions of token counts.

The cut moves in blocks: when a window overflows it is cut down to a low-water mark, not just below the brim, so that
the following turns leave the prefix as it is and the engine's prefix cache keeps working. There is no state: the cuts
are found by replaying the conversation from its first turn, so each later request of it finds the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def find_cuts(turns: Sequence[int], room: int, *, low_water: float, keep_last: int) -> tuple[int, ...]:
    """Successive starts of the window over `turns` (tokens of each) that fits `room`: 0 first, the current one last.

    At least `keep_last` turns stay as long as they fit, and the last one always: the caller checks whether it fits.
    """
    low = int(room * low_water)
    cuts = [0]
    start = used = 0
    for latest, tokens in enumerate(turns):
        used += tokens
        if used <= room:
            continue
        while used > low and start <= latest - max(keep_last, 1):
            used -= turns[start]
            start += 1
        while used > room and start < latest:
            used -= turns[start]
            start += 1
        if start != cuts[-1]:
            cuts.append(start)
    return tuple(cuts)


@dataclass(frozen=True, slots=True)
class Node:
    """A summary to be made of the turns [start, end): of the first ones the children's summaries, then as was said."""

    start: int
    end: int
    children: tuple["Node", ...] = ()

    @property
    def said_from(self) -> int:
        """The first turn that no child covers."""
        return self.children[-1].end if self.children else self.start

    @property
    def level(self) -> int:
        """0 for a summary of turns."""
        return 1 + max(child.level for child in self.children) if self.children else 0


def chain(cuts: Sequence[int]) -> Node | None:
    """One running summary: each block of turns is condensed together with the summary of all before it."""
    node: Node | None = None
    for start, end in pairwise(cuts):
        node = Node(start, end) if node is None else Node(node.start, end, (node,))
    return node


def tree(cuts: Sequence[int], *, fanout: int, most: int) -> tuple[Node, ...]:
    """Summaries of summaries: `fanout` neighbours of one level become one of the next; at most `most` remain.

    Nodes once formed stay the same while the conversation grows, so their summaries can be reused; the oldest surplus
    is merged once more.
    """
    nodes: list[Node] = []
    for start, end in pairwise(cuts):
        nodes.append(Node(start, end))
        while len(nodes) >= fanout and len({node.level for node in nodes[-fanout:]}) == 1:
            merged = nodes[-fanout:]
            nodes[-fanout:] = [Node(merged[0].start, merged[-1].end, tuple(merged))]
    surplus = len(nodes) - max(most, 1) + 1
    if surplus > 1:
        nodes[:surplus] = [Node(nodes[0].start, nodes[surplus - 1].end, tuple(nodes[:surplus]))]
    return tuple(nodes)
