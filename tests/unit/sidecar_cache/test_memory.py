import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.memory import ENTRY_OVERHEAD, LruMemory
from trimtab.sidecar.interfaces import Entry, Key


def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"), stream=False)


def entry(body: bytes = b"x", *, created: float = 0.0, ttl: float = 100.0) -> Entry:
    return Entry(body, ((b"content-type", b"application/json"),), created, ttl, stream=False)


def cost(e: Entry) -> int:
    return e.size + ENTRY_OVERHEAD


def test_a_stored_entry_is_found_until_its_time_is_over() -> None:
    memory = LruMemory(10**6)
    e = entry(created=10.0, ttl=5.0)
    memory.put(key(1), e, now=10.0)
    assert memory.get(key(1), 14.9) is e
    assert memory.get(key(1), 15.0) is None
    assert (memory.bytes_used, len(memory)) == (0, 0)


def test_an_expired_entry_is_not_taken_in() -> None:
    memory = LruMemory(10**6)
    memory.put(key(1), entry(created=0.0, ttl=5.0), now=5.0)
    assert len(memory) == 0


def test_the_least_recently_used_entry_leaves_first() -> None:
    memory = LruMemory(3 * cost(entry()), probation=0.0)
    for number in (1, 2, 3):
        memory.put(key(number), entry(), now=0.0)
    memory.get(key(1), 0.0)
    memory.put(key(4), entry(), now=0.0)
    assert [memory.get(key(n), 0.0) is not None for n in (1, 2, 3, 4)] == [True, False, True, True]
    assert memory.evictions == 1


def test_entries_that_were_asked_for_again_survive_a_flood_of_others() -> None:
    memory = LruMemory(10 * cost(entry()))
    for number in range(5):
        memory.put(key(number), entry(), now=0.0)
        memory.get(key(number), 0.0)
    for number in range(100, 200):
        memory.put(key(number), entry(), now=0.0)
    assert [memory.get(key(number), 0.0) is not None for number in range(5)] == [True] * 5


def test_an_entry_that_comes_again_soon_after_it_left_has_proven_itself() -> None:
    memory = LruMemory(10 * cost(entry()))
    for number in range(12):
        memory.put(key(number), entry(), now=0.0)
    assert memory.get(key(1), 0.0) is None
    memory.put(key(1), entry(), now=0.0)
    for number in range(100, 120):
        memory.put(key(number), entry(), now=0.0)
    assert memory.get(key(1), 0.0) is not None


def test_replacing_an_entry_accounts_once() -> None:
    memory = LruMemory(10**6)
    memory.put(key(1), entry(b"x" * 100), now=0.0)
    memory.put(key(1), entry(b"y"), now=0.0)
    assert memory.bytes_used == cost(entry(b"y"))


def test_an_entry_over_the_bound_is_refused_and_removes_its_predecessor() -> None:
    memory = LruMemory(10**6, max_entry_bytes=1000)
    memory.put(key(1), entry(), now=0.0)
    memory.put(key(1), entry(b"x" * 1001), now=0.0)
    assert memory.get(key(1), 0.0) is None
    assert memory.bytes_used == 0


def test_a_tier_without_room_stays_empty() -> None:
    memory = LruMemory(0)
    memory.put(key(1), entry(), now=0.0)
    assert (len(memory), memory.bytes_used, memory.evictions) == (0, 0, 0)


def test_clear_says_how_many_entries_it_dropped() -> None:
    memory = LruMemory(10**6)
    for number in range(5):
        memory.put(key(number), entry(), now=0.0)
    assert memory.clear() == 5
    assert (len(memory), memory.bytes_used) == (0, 0)


class Model:
    """The same policy, plainly: two lists of (number, entry), oldest first."""

    def __init__(self, capacity: int, probation: float) -> None:
        self.capacity, self.probation = capacity, probation
        self.main: list[tuple[int, Entry]] = []
        self.new: list[tuple[int, Entry]] = []
        self.wanted: set[int] = set()
        self.left: list[int] = []

    @staticmethod
    def bytes(part: list[tuple[int, Entry]]) -> int:
        return sum(cost(e) for _, e in part)

    def get(self, number: int) -> Entry | None:
        for place, (known, e) in enumerate(self.main):
            if known == number:
                self.main.append(self.main.pop(place))
                return e
        found = [e for known, e in self.new if known == number]
        self.wanted |= {number} if found else set()
        return found[0] if found else None

    def put(self, number: int, e: Entry) -> None:
        proven = number in self.left or number in self.wanted or number in dict(self.main) or self.probation == 0
        self.main = [item for item in self.main if item[0] != number]
        self.new = [item for item in self.new if item[0] != number]
        self.wanted.discard(number)
        if cost(e) > self.capacity:
            return
        while self.bytes(self.main + self.new) + cost(e) > self.capacity:
            if self.main and self.bytes(self.new) <= self.capacity * self.probation:
                self.main.pop(0)
                continue
            leaving = self.new.pop(0)
            if leaving[0] in self.wanted:
                self.wanted.discard(leaving[0])
                self.main.append(leaving)
            else:
                self.left.append(leaving[0])
                self.left = self.left[-(len(self.main) + len(self.new)) :] if self.main or self.new else []
        self.left = [known for known in self.left if known != number]
        (self.main if proven else self.new).append((number, e))


@given(
    capacity=st.integers(0, 9000),
    probation=st.sampled_from([0.0, 0.3, 1.0]),
    steps=st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 8), st.integers(0, 1500)), max_size=60),
)
def test_it_behaves_like_a_plain_model_and_never_exceeds_its_bound(
    capacity: int, probation: float, steps: list[tuple[str, int, int]]
) -> None:
    memory, model = LruMemory(capacity, probation=probation), Model(capacity, probation)
    for verb, number, size in steps:
        if verb == "g":
            assert memory.get(key(number), 0.0) is model.get(number)
            continue
        e = entry(b"x" * size)
        memory.put(key(number), e, now=0.0)
        model.put(number, e)
        assert memory.bytes_used == model.bytes(model.main + model.new) <= capacity
        assert len(memory) == len(model.main) + len(model.new)


def test_the_accounted_overhead_covers_what_an_entry_really_takes() -> None:
    count, size = 2000, 500

    def head(number: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%d" % number

    memory = LruMemory(count * (size + 27 + ENTRY_OVERHEAD))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2 * count):  # half of them leave again; their keys are remembered
            name, value = b"content-%d" % number, b"application/%d" % number
            body = (b"%d" % number).ljust(size)
            e = Entry(body, ((name, value),), number + 0.5, number + 0.25, stream=False, wire=head(number))
            memory.put(Key(number.to_bytes(32, "big"), stream=False), e, now=0.0)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert memory.evictions > count / 2
    assert used <= memory.bytes_used <= 2 * used
