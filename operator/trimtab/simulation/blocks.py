"""KV blocks: who holds how many, and which prompts' blocks are kept for reuse.

The rules are those of TGI 3.3.7, backends/v3/src/block_allocator.rs and radix.rs. Only counts are kept: no block has a
number. Every request reserves its whole future need before it starts; prompts become reusable when their request ends.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Protocol

from trimtab.simulation.prompts import Prompt


@dataclass(slots=True)
class Allocation:
    """Blocks of one request."""

    blocks: int
    """All that it holds, shared ones included."""
    prefix_tokens: int = 0
    """Tokens of the prompt whose keys and values are there already."""
    prompt: Prompt | None = None
    """To be remembered at the end; None: not."""
    node: "Node | None" = None
    """Where the shared beginning ends."""


class Allocator(Protocol):
    """Hands out blocks."""

    block_tokens: int
    free_blocks: int

    def allocate(self, tokens: int, prompt: Prompt | None) -> Allocation | None:
        """Blocks for that many tokens; None: there are not enough. Without `prompt` nothing is shared."""
        ...

    def release(self, allocation: Allocation) -> None:
        """Take them back."""
        ...


@dataclass(slots=True)
class SimpleAllocator:
    """Prefix caching off."""

    free_blocks: int
    block_tokens: int = 1

    def allocate(self, tokens: int, prompt: Prompt | None) -> Allocation | None:
        """See Allocator."""
        blocks = -(-tokens // self.block_tokens)
        if blocks > self.free_blocks:
            return None
        self.free_blocks -= blocks
        return Allocation(blocks)

    def release(self, allocation: Allocation) -> None:
        """See Allocator."""
        self.free_blocks += allocation.blocks


@dataclass(slots=True, eq=False)
class Node:
    """An edge of the trie: the prompt's tokens from `start` to `end`, whole blocks."""

    parent: "Node | None"
    start: int
    end: int
    keys: tuple[int, ...]
    """Keys of the units that overlap the range."""
    unit: int
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    pins: int = 0
    touched: int = 0


class RadixAllocator:
    """Prefix caching on: ended prompts stay in a trie until their blocks are needed."""

    def __init__(self, blocks: int, block_tokens: int = 1) -> None:
        self.block_tokens = block_tokens
        self.free_blocks = blocks
        self.cached_blocks = 0
        self._root = Node(None, 0, 0, (), 1)
        self._clock = 0
        # Leaves by last use; entries that no longer hold are dropped when they come up.
        self._oldest: list[tuple[int, int, Node]] = []
        self._serial = 0

    def allocate(self, tokens: int, prompt: Prompt | None) -> Allocation | None:
        """See Allocator. What was evicted stays evicted even when the allocation then fails."""
        block = self.block_tokens
        needed = -(-tokens // block)
        if prompt is None:
            if not self._make_room(needed):
                return None
            self.free_blocks -= needed
            return Allocation(needed)
        node, hit = self._find(prompt)
        node.pins += 1
        new = needed - hit // block
        if not self._make_room(new):
            self._unpin(node)
            return None
        self.free_blocks -= new
        return Allocation(needed, hit, prompt, node)

    def release(self, allocation: Allocation) -> None:
        """See Allocator. The prompt's blocks go to the trie unless they are there already."""
        node, prompt = allocation.node, allocation.prompt
        if node is None or prompt is None:
            self.free_blocks += allocation.blocks
            return
        self._unpin(node)
        new = allocation.blocks - allocation.prefix_tokens // self.block_tokens
        kept = self._insert(prompt)
        self.cached_blocks += kept
        self.free_blocks += new - kept

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _find(self, prompt: Prompt) -> tuple[Node, int]:
        """(node, tokens): the longest known beginning of the prompt; marks the way as used."""
        node, now = self._root, self._tick()
        position, limit = 0, prompt.known(prompt.tokens) // self.block_tokens * self.block_tokens
        while position < limit:
            child = node.children.get(self._first_block(prompt, position))
            if child is None:
                break
            matched = self._common(child, prompt, limit)
            if matched == position:
                break
            child.touched = now
            if not child.children and not child.pins:
                self._remember(child)
            node, position = child, matched
            if matched < child.end:
                break
        return node, position

    def _first_block(self, prompt: Prompt, position: int) -> tuple[int, ...]:
        unit = prompt.unit
        return prompt.keys[position // unit : -(-(position + self.block_tokens) // unit)]

    def _common(self, child: Node, prompt: Prompt, limit: int) -> int:
        """Where child and prompt part, in whole blocks."""
        if child.unit != prompt.unit:
            return child.start
        first = child.start // child.unit
        theirs = prompt.keys[first : first + len(child.keys)]
        same = _common_prefix(child.keys, theirs)
        end = child.end if same == len(child.keys) else (first + same) * child.unit
        return min(end, limit, child.end) // self.block_tokens * self.block_tokens

    def _insert(self, prompt: Prompt) -> int:
        """Keep the prompt's whole blocks; returns how many are new."""
        block = self.block_tokens
        end = prompt.known(prompt.tokens) // block * block
        node, position = self._find(prompt)
        if position >= end:
            return 0
        if position < node.end:
            node = self._split(node, position)
        first = position // prompt.unit
        leaf = Node(node, position, end, prompt.keys[first : -(-end // prompt.unit)], prompt.unit)
        leaf.touched = self._clock
        node.children[self._first_block(prompt, position)] = leaf
        self._remember(leaf)
        return (end - position) // block

    def _split(self, node: Node, position: int) -> Node:
        """Cut an edge; the lower part stays the same object, because requests may have pinned it."""
        parent = node.parent
        if parent is None:
            return node
        first = node.start // node.unit
        upper = Node(parent, node.start, position, node.keys[: -(-position // node.unit) - first], node.unit)
        upper.touched = node.touched
        parent.children[self._key(node)] = upper
        cut = position // node.unit - first
        node.parent, node.start, node.keys = upper, position, node.keys[cut:]
        upper.children[self._key(node)] = node
        return upper

    def _key(self, node: Node) -> tuple[int, ...]:
        first = node.start // node.unit
        return node.keys[: -(-(node.start + self.block_tokens) // node.unit) - first]

    def _unpin(self, node: Node) -> None:
        node.pins -= 1
        if node.pins == 0 and not node.children and node.parent is not None:
            self._remember(node)

    def _remember(self, leaf: Node) -> None:
        self._serial += 1
        heapq.heappush(self._oldest, (leaf.touched, self._serial, leaf))

    def _make_room(self, blocks: int) -> bool:
        while self.free_blocks < blocks and self._oldest:
            touched, _, leaf = heapq.heappop(self._oldest)
            if leaf.touched != touched or leaf.children or leaf.pins or leaf.parent is None:
                continue
            self._evict(leaf, blocks - self.free_blocks)
        return self.free_blocks >= blocks

    def _evict(self, leaf: Node, wanted: int) -> None:
        block = self.block_tokens
        held = (leaf.end - leaf.start) // block
        if held > wanted:
            # Only the tail is given up.
            leaf.end -= wanted * block
            leaf.keys = leaf.keys[: -(-leaf.end // leaf.unit) - leaf.start // leaf.unit]
            self._remember(leaf)
            self.free_blocks += wanted
            self.cached_blocks -= wanted
            return
        self.free_blocks += held
        self.cached_blocks -= held
        parent = leaf.parent
        if parent is None:
            return
        del parent.children[self._key(leaf)]
        leaf.parent = None
        if not parent.children and not parent.pins and parent.parent is not None:
            self._remember(parent)


def _common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Length of the common beginning; compares slices, which is far faster than elements."""
    longest = min(len(first), len(second))
    if first[:longest] == second[:longest]:
        return longest
    low, high = 0, longest
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def usable_blocks(capacity_tokens: int, block_tokens: int) -> int:
    """Blocks for requests: the first one is kept for health checks."""
    return max(0, math.floor(capacity_tokens / block_tokens) - 1)
