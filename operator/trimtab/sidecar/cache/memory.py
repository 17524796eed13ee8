"""The tier in this process's memory: least recently used, bounded by bytes, entries expire."""

from collections import OrderedDict

from trimtab.sidecar.interfaces import Entry, Key

ENTRY_OVERHEAD = 900
"""Bytes an entry costs beyond its body and headers, on CPython 3.11 (64 bit): dictionary and list node, digest, `Entry`
with its floats, header tuples, and the server's memo of the response head. tests/unit/sidecar_cache/test_memory.py
compares it with what the allocator reports."""


class LruMemory:
    """Implements `MemoryTier`. Not thread-safe: one event loop owns it. All operations are O(1) but evictions."""

    def __init__(self, max_bytes: int, *, max_entry_bytes: int | None = None) -> None:
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._max_bytes = max_bytes
        self._max_entry_bytes = max_bytes if max_entry_bytes is None else min(max_entry_bytes, max_bytes)
        self.bytes_used = 0
        self.evictions = 0

    def get(self, key: Key, now: float) -> Entry | None:
        """See `MemoryTier.get`."""
        digest = key.digest
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if now >= entry.created + entry.ttl:
            self._drop(digest)
            return None
        self._entries.move_to_end(digest)
        return entry

    def put(self, key: Key, entry: Entry, now: float) -> None:
        """See `MemoryTier.put`."""
        self._drop(key.digest)
        if entry.size > self._max_entry_bytes or now >= entry.created + entry.ttl:
            return
        cost = entry.size + ENTRY_OVERHEAD
        if cost > self._max_bytes:
            return
        while self.bytes_used + cost > self._max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1
        self._entries[key.digest] = entry
        self.bytes_used += cost

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self.bytes_used -= entry.size + ENTRY_OVERHEAD

    def clear(self) -> int:
        """See `MemoryTier.clear`."""
        dropped = len(self._entries)
        self._entries.clear()
        self.bytes_used = 0
        return dropped

    def __len__(self) -> int:
        return len(self._entries)
