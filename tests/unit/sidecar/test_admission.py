"""The queue before the engine."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.admission import Admission, Bounds, Ticket
from trimtab.sidecar.errors import Failure

NORMAL = 1


class Desk:
    """An admission with a protocol of what happened."""

    def __init__(self, limit: int = 1, queue: int = 100, timeout: float = 10.0) -> None:
        self.admission = Admission(Bounds(limit, queue, timeout))
        self.admitted: list[str] = []
        self.rejected: dict[str, Failure] = {}
        self.tickets: dict[str, Ticket] = {}

    def enter(
        self, name: str, now: float = 0.0, *, tenant: str = "t", priority: int = NORMAL, units: int = 1
    ) -> Ticket:
        def reject(failure: Failure) -> None:
            self.rejected[name] = failure

        ticket = Ticket(units, (priority, tenant.encode()), lambda: self.admitted.append(name), reject)
        self.tickets[name] = ticket
        self.admission.enter(ticket, now)
        return ticket

    def leave(self, name: str, now: float = 0.0) -> None:
        self.admission.leave(self.tickets[name], now)

    def drain(self) -> list[str]:
        """Let each admitted request end, in order; the order of admission."""
        done = 0
        while done < len(self.admitted):
            self.leave(self.admitted[done])
            done += 1
        return self.admitted


def test_the_limit_holds_and_the_next_goes_when_one_leaves() -> None:
    desk = Desk(limit=2)
    for name in "abc":
        desk.enter(name)
    assert desk.admitted == ["a", "b"]
    assert desk.admission.depth == 1
    desk.leave("a")
    assert desk.admitted == ["a", "b", "c"]


def test_one_tenant_is_first_come_first_served() -> None:
    desk = Desk()
    for name in "abcdef":
        desk.enter(name)
    assert desk.drain() == list("abcdef")


def test_a_tenant_with_many_requests_does_not_delay_another_one() -> None:
    desk = Desk()
    for number in range(50):
        desk.enter(f"greedy{number}", tenant="greedy")
    desk.enter("modest", tenant="modest")
    assert desk.drain().index("modest") <= 2


def test_high_priority_goes_first_and_low_is_not_starved() -> None:
    desk = Desk(queue=1000)
    desk.enter("running")
    for number in range(30):
        desk.enter(f"low{number}", priority=2)
    for number in range(200):
        desk.enter(f"high{number}", priority=0)
    first = desk.drain()[:100]
    assert sum(name.startswith("high") for name in first) > 85
    assert sum(name.startswith("low") for name in first) >= 3


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    desk = Desk(queue=1)
    for name in "abc":
        desk.enter(name)
    failure = desk.rejected["c"]
    assert failure.status == 429
    assert failure.reason == "queue_full"
    assert failure.retry_after == 1


def test_a_queue_of_length_zero_never_waits() -> None:
    desk = Desk(queue=0)
    desk.enter("a")
    desk.enter("b")
    assert "b" in desk.rejected


def test_who_waits_too_long_is_refused() -> None:
    desk = Desk(timeout=5)
    desk.enter("a", 0)
    desk.enter("b", 1)
    desk.admission.expire(5.9)
    assert desk.rejected == {}
    desk.admission.expire(6.0)
    assert desk.rejected["b"].reason == "queue_timeout"
    desk.leave("a", 7)
    assert desk.admitted == ["a"]
    assert desk.admission.in_flight == 0


def test_a_hopeless_wait_is_refused_at_once() -> None:
    desk = Desk(limit=1, timeout=5)
    for number in range(5):
        desk.enter(f"early{number}", 0)
    desk.leave("early0", 4.0)  # four seconds a request, and three still wait
    desk.enter("late", 4.0)
    failure = desk.rejected["late"]
    assert failure.reason == "hopeless"
    assert failure.retry_after is not None
    assert failure.retry_after >= 10


def test_requests_that_end_together_do_not_make_the_next_wait_look_hopeless() -> None:
    desk = Desk(limit=20, timeout=15)
    for number in range(30):
        desk.enter(f"r{number}", 0)
    for number in range(20):
        desk.leave(f"r{number}", 10.0)  # a whole batch at one time, then nothing for long
    desk.enter("filler", 10.0)
    for number in range(9):
        desk.enter(f"more{number}", 10.0)
    desk.enter("late", 19.0)
    assert desk.rejected == {}


def test_high_priority_is_not_judged_by_the_length_of_the_queue() -> None:
    desk = Desk(limit=1, timeout=5)
    for number in range(5):
        desk.enter(f"early{number}", 0)
    desk.leave("early0", 4.0)
    desk.enter("urgent", 4.0, priority=0)
    assert "urgent" not in desk.rejected


def test_a_raised_limit_admits_at_once_and_a_lowered_one_takes_nothing_back() -> None:
    desk = Desk(limit=1)
    for name in "abcd":
        desk.enter(name)
    desk.admission.resize(Bounds(3, 100, 10), 0)
    assert desk.admitted == ["a", "b", "c"]
    desk.admission.resize(Bounds(1, 100, 10), 0)
    assert desk.admission.in_flight == 3
    desk.leave("a")
    desk.leave("b")
    assert desk.admitted == ["a", "b", "c"]
    desk.leave("c")
    assert desk.admitted == ["a", "b", "c", "d"]


def test_a_request_of_many_sequences_counts_as_many() -> None:
    desk = Desk(limit=4)
    desk.enter("big", units=3)
    desk.enter("small")
    desk.enter("late", units=2)
    assert desk.admitted == ["big", "small"]
    desk.leave("small")
    assert "late" not in desk.admitted
    desk.leave("big")
    assert "late" in desk.admitted


def test_a_request_larger_than_the_limit_runs_alone() -> None:
    desk = Desk(limit=2)
    desk.enter("huge", units=64)
    assert desk.admitted == ["huge"]
    desk.enter("next")
    assert desk.admitted == ["huge"]


def test_a_limit_lowered_below_a_waiting_request_does_not_block_the_queue() -> None:
    desk = Desk(limit=8)
    desk.enter("a", units=8)
    desk.enter("wide", units=6)
    desk.admission.resize(Bounds(2, 100, 10), 0)
    desk.leave("a")
    assert desk.admitted == ["a", "wide"]


def test_leaving_twice_or_while_waiting_gives_back_once() -> None:
    desk = Desk(limit=1)
    for name in "abc":
        desk.enter(name)
    desk.leave("b")
    desk.leave("b")
    desk.leave("a")
    desk.leave("a")
    assert desk.admitted == ["a", "c"]
    assert desk.admission.in_flight == 1
    assert desk.admission.depth == 0


Step = tuple[str, int, int, int]


@pytest.mark.parametrize("limit", [1, 3])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["enter", "leave", "resize", "expire"]),
            st.integers(0, 30),
            st.integers(0, 2),
            st.integers(1, 4),
        ),
        max_size=60,
    )
)
def test_books_always_balance(limit: int, steps: list[Step]) -> None:
    desk = Desk(limit=limit, queue=5, timeout=3)
    alive: list[str] = []
    now = 0.0
    actions: dict[str, Callable[[int, int, int], None]] = {}

    def enter(which: int, priority: int, units: int) -> None:
        name = f"r{len(desk.tickets)}"
        desk.enter(name, now, tenant=str(which % 3), priority=priority, units=units)
        alive.append(name)

    def leave(which: int, priority: int, units: int) -> None:
        if alive:
            desk.leave(alive.pop(which % len(alive)), now)

    actions["enter"], actions["leave"] = enter, leave
    actions["resize"] = lambda which, priority, units: desk.admission.resize(Bounds(units, 5, 3), now)
    actions["expire"] = lambda which, priority, units: desk.admission.expire(now)
    for what, which, priority, units in steps:
        now += 0.5
        actions[what](which, priority, units)
        held = [ticket for ticket in desk.tickets.values() if ticket.admitted]
        assert desk.admission.in_flight == sum(ticket.units for ticket in held)
        assert desk.admission.depth == sum(ticket.waiting for ticket in desk.tickets.values())
    for name in list(desk.tickets):
        desk.leave(name, now)
    assert desk.admission.in_flight == 0
    assert desk.admission.depth == 0
