"""Which entry should leave a full response cache? Replays request streams against several policies.

    python benchmarks/bench_cache_admission.py [--trace FILE.csv.gz ...] [--requests N] [--seed N]

Synthetic streams (Zipf popularity with drift, one-time requests mixed in, scans) and, where given, traces with a column
`prefix_block_ids_512` (Mooncake's): two requests are equal when all their blocks are. Printed: share of requests and of
generated tokens answered from the cache, for caches of 1 to 30 % of the stream's distinct bytes, and µs an operation.
"""

import argparse
import csv
import gzip
import random
import sys
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from trimtab.sidecar.cache.memory import ENTRY_OVERHEAD, LruMemory
from trimtab.sidecar.interfaces import Entry, Key

BYTES_A_TOKEN = 5
OVERHEAD = 1300  # JSON around a short answer and the cache's own bookkeeping


@dataclass(frozen=True, slots=True)
class Request:
    key: int
    tokens: int

    @property
    def size(self) -> int:
        return OVERHEAD + self.tokens * BYTES_A_TOKEN


class Policy(Protocol):
    def access(self, request: Request) -> bool:
        """Whether it was a hit; stores it otherwise."""


class Lru:
    """Least recently used leaves."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.entries: OrderedDict[int, int] = OrderedDict()

    def access(self, request: Request) -> bool:
        if request.key in self.entries:
            self.entries.move_to_end(request.key)
            return True
        if request.size <= self.capacity and self.admits(request):
            while self.used + request.size > self.capacity:
                self.used -= self.entries.popitem(last=False)[1]
            self.entries[request.key] = request.size
            self.used += request.size
        return False

    def admits(self, request: Request) -> bool:
        return True


class Sketch:
    """Approximate counts that halve now and then (TinyLFU, Einziger, Friedman and Manes 2017)."""

    def __init__(self, width: int) -> None:
        self.width, self.seen = width, 0
        self.rows = [bytearray(width) for _ in range(4)]

    def add(self, key: int) -> None:
        for number, row in enumerate(self.rows):
            place = hash((key, number)) % self.width
            row[place] = min(15, row[place] + 1)
        self.seen += 1
        if self.seen >= 10 * self.width:
            self.seen = 0
            self.rows = [bytearray(count >> 1 for count in row) for row in self.rows]

    def count(self, key: int) -> int:
        return min(row[hash((key, number)) % self.width] for number, row in enumerate(self.rows))


class TinyLfu:
    """W-TinyLFU: a small LRU window; what falls out of it enters a segmented LRU only if it is asked for more often
    than what would have to leave."""

    def __init__(self, capacity: int, window: float = 0.05) -> None:
        self.bounds = [int(capacity * window), 0, 0]
        main = capacity - self.bounds[0]
        self.bounds[1:] = [int(main * 0.2), int(main * 0.8)]
        self.parts: list[OrderedDict[int, int]] = [OrderedDict(), OrderedDict(), OrderedDict()]
        self.used = [0, 0, 0]
        self.sketch = Sketch(max(64, capacity // 2000))

    def _put(self, part: int, key: int, size: int) -> None:
        self.parts[part][key] = size
        self.used[part] += size

    def _pop(self, part: int) -> tuple[int, int]:
        key, size = self.parts[part].popitem(last=False)
        self.used[part] -= size
        return key, size

    def access(self, request: Request) -> bool:
        key = request.key
        self.sketch.add(key)
        for part, entries in enumerate(self.parts):
            if key not in entries:
                continue
            if part == 1:
                self.used[1] -= entries.pop(key)
                self._put(2, key, request.size)
                while self.used[2] > self.bounds[2]:
                    self._put(1, *self._pop(2))
            else:
                entries.move_to_end(key)
            return True
        self._put(0, key, request.size)
        while self.used[0] > self.bounds[0] and self.parts[0]:
            self._admit(*self._pop(0))
        return False

    def _admit(self, key: int, size: int) -> None:
        main = self.bounds[1] + self.bounds[2]
        if size > main:
            return
        while self.used[1] + self.used[2] + size > main:
            part = 1 if self.parts[1] else 2
            victim = next(iter(self.parts[part]))
            if self.sketch.count(victim) >= self.sketch.count(key):
                return
            self._pop(part)
        self._put(1, key, size)


class Sieve:
    """SIEVE (Zhang and others, NSDI 2024): a hit marks; the hand goes from old to new, clears marks and evicts the
    first unmarked entry. Entries keep their places, so newcomers are met again soon."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.marked: dict[int, bool] = {}
        self.sizes: dict[int, int] = {}
        self.newer: dict[int, int] = {-1: -1}  # a ring through -1, which stands before the oldest and after the newest
        self.older: dict[int, int] = {-1: -1}
        self.hand = -1

    def access(self, request: Request) -> bool:
        key = request.key
        if key in self.sizes:
            self.marked[key] = True
            return True
        if request.size > self.capacity:
            return False
        while self.used + request.size > self.capacity:
            self._evict()
        self.sizes[key], self.marked[key] = request.size, False
        newest = self.older[-1]
        self.newer[newest], self.older[key] = key, newest
        self.newer[key], self.older[-1] = -1, key
        self.used += request.size
        return False

    def _evict(self) -> None:
        key = self.hand
        while key == -1 or self.marked[key]:
            if key != -1:
                self.marked[key] = False
            key = self.newer[key]
        before, after = self.older.pop(key), self.newer.pop(key)
        self.newer[before], self.older[after] = after, before
        self.hand = after
        self.used -= self.sizes.pop(key)
        del self.marked[key]


class S3Fifo:
    """S3-FIFO (Yang and others, SOSP 2023): a small queue for newcomers, a main one, the ghosts of the small one."""

    def __init__(self, capacity: int, newcomers: float = 0.1) -> None:
        self.capacity = capacity
        self.bound = capacity * newcomers
        self.small: OrderedDict[int, int] = OrderedDict()
        self.main: OrderedDict[int, int] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()
        self.used = {"small": 0, "main": 0}
        self.freq: dict[int, int] = {}

    def access(self, request: Request) -> bool:
        key = request.key
        if key in self.small or key in self.main:
            self.freq[key] = min(3, self.freq[key] + 1)
            return True
        if request.size > self.capacity:
            return False
        while sum(self.used.values()) + request.size > self.capacity:
            self._evict()
        self.freq[key] = 0
        if key in self.ghosts:
            del self.ghosts[key]
            self.main[key] = request.size
            self.used["main"] += request.size
        else:
            self.small[key] = request.size
            self.used["small"] += request.size
        return False

    def _evict(self) -> None:
        if self.used["small"] > self.bound or not self.main:
            key, size = self.small.popitem(last=False)
            self.used["small"] -= size
            if self.freq[key] > 0:
                self.main[key] = size
                self.used["main"] += size
                return
            del self.freq[key]
            self.ghosts[key] = None
            if len(self.ghosts) > len(self.main) + len(self.small):
                self.ghosts.popitem(last=False)
            return
        while True:
            key, size = self.main.popitem(last=False)
            if self.freq[key] > 0:
                self.freq[key] -= 1
                self.main[key] = size
                continue
            self.used["main"] -= size
            del self.freq[key]
            return


class Ours:
    """The memory tier as it is in the product."""

    def __init__(self, capacity: int) -> None:
        self.memory = LruMemory(capacity)
        self.bodies: dict[int, bytes] = {}

    def access(self, request: Request) -> bool:
        key = Key(request.key.to_bytes(32, "big"), stream=False)
        if self.memory.get(key, 0.0) is not None:
            return True
        length = max(0, request.size - ENTRY_OVERHEAD)
        body = self.bodies.setdefault(length, bytes(length))
        self.memory.put(key, Entry(body, (), 0.0, 1.0, stream=False), 0.0)
        return False


POLICIES: dict[str, Callable[[int], Policy]] = {
    "LRU": Lru,
    "W-TinyLFU": TinyLfu,
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
    "S3-FIFO, 30 % new": lambda capacity: S3Fifo(capacity, 0.3),
    "ours": Ours,
}


def zipf(count: int, seed: int, *, keys: int, skew: float, drift: float, once: float) -> list[Request]:
    """Popularity by rank^-skew over `keys`; each draw is new with probability `once`; `drift` ranks move a request."""
    rng = random.Random(seed)
    weights = list(accumulate(rank**-skew for rank in range(1, keys + 1)))
    lengths: dict[int, int] = {}
    out = []
    fresh = 10**9
    for number in range(count):
        if rng.random() < once:
            fresh += 1
            key = fresh
        else:
            rank = bisect_left(weights, rng.random() * weights[-1])
            key = int(rank + number * drift)
        if key not in lengths:
            lengths[key] = max(1, int(rng.lognormvariate(5.0, 1.0)))
        out.append(Request(key, lengths[key]))
    return out


def scans(count: int, seed: int) -> list[Request]:
    """A busy working set, interrupted by nightly batch runs that touch everything once."""
    base = zipf(count, seed, keys=5_000, skew=0.9, drift=0.0, once=0.1)
    rng = random.Random(seed + 1)
    batch = [Request(2 * 10**9 + n, max(1, int(rng.lognormvariate(5.0, 1.0)))) for n in range(4_000)]
    out: list[Request] = []
    for start in range(0, count, 20_000):
        out += base[start : start + 20_000]
        out += batch
    return out


def from_trace(path: Path) -> list[Request]:
    """Requests of a trace with block hashes."""
    with gzip.open(path, "rt") as lines:
        return [
            Request(hash(row["prefix_block_ids_512"]) & 0x7FFFFFFF, int(row["out_tokens"]))
            for row in csv.DictReader(lines)
        ]


def streams(count: int, seed: int, traces: Iterable[Path]) -> dict[str, list[Request]]:
    made = {
        "Zipf 0.7, 40 % once": zipf(count, seed, keys=20_000, skew=0.7, drift=0.0, once=0.4),
        "Zipf 0.9, 40 % once": zipf(count, seed, keys=20_000, skew=0.9, drift=0.0, once=0.4),
        "Zipf 1.1, 40 % once": zipf(count, seed, keys=20_000, skew=1.1, drift=0.0, once=0.4),
        "Zipf 0.9, drifting": zipf(count, seed, keys=20_000, skew=0.9, drift=0.05, once=0.4),
        "Zipf 0.9, drifting fast": zipf(count, seed, keys=2_000, skew=0.9, drift=0.5, once=0.2),
        "Zipf 0.9 with scans": scans(count, seed),
    }
    return made | {path.name.split(".")[0]: from_trace(path) for path in traces}


def replay(requests: list[Request], policy: Policy) -> tuple[float, float, float]:
    """Share of requests hit, share of tokens hit, µs an operation."""
    hits = saved = 0
    start = time.perf_counter()
    for request in requests:
        if policy.access(request):
            hits += 1
            saved += request.tokens
    spent = time.perf_counter() - start
    return hits / len(requests), saved / sum(r.tokens for r in requests), spent / len(requests) * 1e6


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trace", type=Path, action="append", default=[])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"{'stream':28} {'size':>5}  " + "  ".join(f"{name:>22}" for name in POLICIES))
    for name, requests in streams(options.requests, options.seed, options.trace).items():
        distinct = sum({request.key: request.size for request in requests}.values())
        for share in (0.01, 0.03, 0.1, 0.3):
            cells = [replay(requests, make(int(distinct * share))) for make in POLICIES.values()]
            text = "  ".join(f"{100 * hit:5.1f} % {100 * saved:5.1f} % {cost:4.1f} µs" for hit, saved, cost in cells)
            print(f"{name:28} {share:5.0%}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
