"""The lease: one leader at a time, a new one within seconds, whatever the clocks say."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.controller.fakes.clock import run_virtually
from tests.unit.controller.fakes.kube import FakeKube, failing
from tests.unit.controller.fakes.world import FakeClock

from trimtab.controller.leader import LeaderElector, Step, Timing, View, expired, next_step
from trimtab.controller.objects import LEASE, Ref

TIMING = Timing()
REF = Ref(LEASE, "trimtab", "operator")


def _lease(holder: str, renewed: str = "t1", duration: int = 15) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": duration}}


@pytest.mark.parametrize(
    ("view", "lease", "now", "step"),
    [
        pytest.param(View(), None, 0, Step.TAKE, id="there is none"),
        pytest.param(View(), _lease(""), 0, Step.TAKE, id="released"),
        pytest.param(View(), _lease("me"), 0, Step.TAKE, id="left by an earlier run of the same identity"),
        pytest.param(View(), _lease("other"), 1e9, Step.WAIT, id="seen for the first time, however old it says it is"),
        pytest.param(View(seen=("other", "t1"), seen_at=0), _lease("other"), 14.9, Step.WAIT, id="fresh"),
        pytest.param(View(seen=("other", "t1"), seen_at=0), _lease("other"), 15, Step.TAKE, id="not renewed"),
        pytest.param(View(seen=("other", "t0"), seen_at=0), _lease("other"), 15, Step.WAIT, id="renewed meanwhile"),
        pytest.param(View(leading=True), _lease("me"), 5, Step.RENEW, id="ours"),
        pytest.param(View(leading=True), _lease("other"), 5, Step.LOST, id="taken by another"),
        pytest.param(View(leading=True), None, 5, Step.LOST, id="deleted"),
    ],
)
def test_what_to_do_next(view: View, lease: dict[str, Any] | None, now: float, step: Step) -> None:
    assert next_step(view, lease, "me", now, TIMING)[0] is step


def test_a_leader_gives_up_before_another_may_take_over() -> None:
    leader = View(leading=True, renewed=0)
    assert not expired(leader, TIMING.renew_deadline - 0.1, TIMING)
    assert expired(leader, TIMING.renew_deadline, TIMING)
    assert TIMING.renew_deadline + TIMING.retry < TIMING.duration


class LoopClock(FakeClock):
    """Follows the virtual loop; its wall clock may be wrong by any amount."""

    def __init__(self, wrong_by: float = 0.0) -> None:
        self.wrong_by = wrong_by

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def seconds(self) -> float:  # type: ignore[override]
        return asyncio.get_running_loop().time() + self.wrong_by


def _elector(kube: FakeKube, name: str, log: list[tuple[float, str, bool]], wrong_by: float = 0.0) -> LeaderElector:
    clock = LoopClock(wrong_by)
    return LeaderElector(
        kube,
        clock,
        namespace="trimtab",
        name="operator",
        identity=name,
        on_change=lambda leading: log.append((clock.monotonic(), name, leading)),
    )


def test_two_candidates_with_wrong_clocks_never_lead_together_and_take_over_in_seconds() -> None:
    log: list[tuple[float, str, bool]] = []

    async def main() -> None:
        kube = FakeKube()
        one, two = _elector(kube, "one", log, -3600), _elector(kube, "two", log, 3600)
        await one.acquire()
        holding = asyncio.create_task(one.hold())
        second = asyncio.create_task(two.acquire())
        await asyncio.sleep(60)
        assert (one.leading, two.leading) == (True, False)
        holding.cancel()
        await one.release()
        await asyncio.wait_for(second, 5)
        assert (one.leading, two.leading) == (False, True)

    run_virtually(main())
    assert [(name, leading) for _, name, leading in log] == [("one", True), ("one", False), ("two", True)]


def test_after_a_crash_another_leads_when_the_lease_has_run_out() -> None:
    log: list[tuple[float, str, bool]] = []

    async def main() -> None:
        kube = FakeKube()
        await _elector(kube, "one", log).acquire()
        two = _elector(kube, "two", log)
        await asyncio.wait_for(two.acquire(), TIMING.duration + 2 * TIMING.retry)
        assert kube.objects[REF]["spec"]["leaseTransitions"] == 1

    run_virtually(main())
    taken = next(time for time, name, leading in log if name == "two" and leading)
    assert taken >= TIMING.duration


@pytest.mark.parametrize("code", [0, 403, 409, 500])
def test_a_leader_that_cannot_renew_stops_in_time_and_short_trouble_is_ridden_out(code: int) -> None:
    log: list[tuple[float, str, bool]] = []

    async def main() -> None:
        kube = FakeKube()
        one = _elector(kube, "one", log)
        await one.acquire()
        holding = asyncio.create_task(one.hold())
        kube.fault = lambda _call: failing(code)
        await asyncio.sleep(TIMING.renew_deadline / 2)
        kube.fault = lambda _call: None
        await asyncio.sleep(30)
        assert one.leading
        kube.fault = lambda _call: failing(code)
        reason = await asyncio.wait_for(holding, TIMING.renew_deadline + TIMING.retry)
        assert reason == "the lease could not be renewed in time"
        assert not one.leading

    run_virtually(main())


def test_a_request_that_hangs_does_not_carry_a_leader_over_its_deadline() -> None:
    class HangingKube(FakeKube):
        hanging = False

        async def get(self, ref: Ref) -> dict[str, Any]:
            if self.hanging:
                await asyncio.sleep(3600)
            return await super().get(ref)

    async def main() -> None:
        kube = HangingKube()
        one = _elector(kube, "one", [])
        await one.acquire()
        kube.hanging = True
        await asyncio.wait_for(one.hold(), TIMING.renew_deadline + TIMING.retry)

    run_virtually(main())


def test_a_lost_lease_is_noticed_and_not_taken_back() -> None:
    async def main() -> None:
        kube = FakeKube()
        one = _elector(kube, "one", [])
        await one.acquire()
        kube.edit(REF, lambda lease: lease["spec"].update(holderIdentity="two", renewTime="x"))
        assert await asyncio.wait_for(one.hold(), 5) == "another process holds the lease"
        await one.release()
        assert kube.objects[REF]["spec"]["holderIdentity"] == "two"

    run_virtually(main())


def test_in_every_interleaving_of_reads_at_most_one_candidate_may_act() -> None:
    """Both candidates against one lease: every order of six attempts, with pauses of all lengths between them."""
    for order in itertools.product("ab", repeat=6):
        for gaps in itertools.product((1.0, 9.0, 16.0), repeat=3):
            _walk(order, gaps)


def _walk(order: tuple[str, ...], gaps: tuple[float, ...]) -> None:
    lease: dict[str, Any] | None = None
    views = {"a": View(), "b": View()}
    now = 0.0
    for index, me in enumerate(order):
        now += gaps[index % 3]
        if expired(views[me], now, TIMING):
            views[me] = replace(views[me], leading=False)
        step, views[me] = next_step(views[me], lease, me, now, TIMING)
        if step in (Step.TAKE, Step.RENEW):
            lease = _lease(me, str(now))
            views[me] = replace(views[me], leading=True, renewed=now)
        elif step is Step.LOST:
            views[me] = replace(views[me], leading=False)
        acting = [name for name, view in views.items() if view.leading and not expired(view, now, TIMING)]
        assert len(acting) <= 1, (order, gaps)
