"""Vectors by partition, searched exhaustively.

Partitions are what one tenant asks with one set of instructions, parameters and decisive words: small. Up to some ten
thousand vectors a product with numpy is as fast as a graph index, exact, and forgets entries at once.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from trimtab.sidecar.cache.embedding import Vectors
from trimtab.sidecar.interfaces import Key


@dataclass(frozen=True, slots=True)
class Item:
    """A stored prompt."""

    key: Key
    text: str


class _Partition:
    """A growing matrix and the items of its rows."""

    __slots__ = ("items", "matrix")

    def __init__(self, dimensions: int) -> None:
        self.matrix: Vectors = np.zeros((4, dimensions), np.float32)
        self.items: list[Item] = []

    def add(self, vector: Vectors, item: Item) -> None:
        if len(self.items) == len(self.matrix):
            self.matrix = np.concatenate([self.matrix, np.zeros_like(self.matrix)])
        self.matrix[len(self.items)] = vector
        self.items.append(item)

    def remove(self, digest: bytes) -> None:
        for row, item in enumerate(self.items):
            if item.key.digest == digest:
                last = len(self.items) - 1
                self.matrix[row] = self.matrix[last]
                self.items[row] = self.items[last]
                self.items.pop()
                return


class VectorIndex:
    """At most `max_entries` items over all partitions; the least recently used one leaves."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._partitions: dict[bytes, _Partition] = {}
        self._order: OrderedDict[bytes, bytes] = OrderedDict()  # digest -> partition

    def __len__(self) -> int:
        return len(self._order)

    def search(self, partition: bytes, vector: Vectors, threshold: float, count: int) -> list[tuple[float, Item]]:
        """The nearest items of a partition with a similarity (cosine) of at least `threshold`, best first."""
        found = self._partitions.get(partition)
        if found is None or found.matrix.shape[1] != len(vector):
            return []
        scores = found.matrix[: len(found.items)] @ vector
        best = np.argsort(-scores)[:count]
        return [(float(scores[row]), found.items[row]) for row in best if scores[row] >= threshold]

    def add(self, partition: bytes, vector: Vectors, item: Item) -> None:
        """Store or replace; vectors of another dimension than the partition's start it anew."""
        self.remove(item.key.digest)
        found = self._partitions.get(partition)
        if found is not None and found.matrix.shape[1] != len(vector):
            for old in list(found.items):
                self.remove(old.key.digest)
            found = None
        if found is None:
            found = self._partitions[partition] = _Partition(len(vector))
        found.add(vector, item)
        self._order[item.key.digest] = partition
        while len(self._order) > self._max_entries:
            self.remove(next(iter(self._order)))

    def touch(self, digest: bytes) -> None:
        """Note a use."""
        if digest in self._order:
            self._order.move_to_end(digest)

    def remove(self, digest: bytes) -> None:
        """Forget an item, if it is there."""
        partition = self._order.pop(digest, None)
        if partition is None:
            return
        found = self._partitions[partition]
        found.remove(digest)
        if not found.items:
            del self._partitions[partition]
