"""Which of several operator processes acts: a Lease, a pure transition function, and a small shell around it.

A holder that cannot renew in time must stop before another may start: `renew_deadline` is shorter than `duration`. The
age of somebody else's lease is measured on the own monotonic clock from when it was seen to change, so clocks that
disagree or jump do no harm.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from trimtab.controller.clock import Clock, rfc3339_micro
from trimtab.controller.kube import ApiFailure, Conflict, KubeClient, NotFound
from trimtab.controller.objects import LEASE, Manifest, Ref

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    duration: float = 15.0
    """A lease not renewed for so long is free."""
    renew_deadline: float = 10.0
    """A leader that could not renew for so long gives up."""
    retry: float = 2.0
    """Between two attempts."""


@dataclass(frozen=True, slots=True)
class View:
    """What one candidate knows."""

    leading: bool = False
    renewed: float = float("-inf")
    """Monotonic time of the own last renewal."""
    seen: tuple[str, str] = ("", "")
    """Holder and renewal time as last read."""
    seen_at: float = float("-inf")
    """Monotonic time at which that was first read."""


class Step(StrEnum):
    """What to do next."""

    WAIT = "wait"
    TAKE = "take"
    RENEW = "renew"
    LOST = "lost"


def next_step(view: View, lease: Manifest | None, me: str, now: float, timing: Timing) -> tuple[Step, View]:
    """The step for a candidate that just read the lease (None: there is none) at monotonic time `now`."""
    spec: dict[str, Any] = (lease or {}).get("spec") or {}
    holder = str(spec.get("holderIdentity") or "")
    state = (holder, str(spec.get("renewTime") or ""))
    if state != view.seen:
        view = replace(view, seen=state, seen_at=now)
    if view.leading:
        return (Step.RENEW if holder == me else Step.LOST), view
    lasts = float(spec.get("leaseDurationSeconds") or timing.duration)
    free = not holder or holder == me or now - view.seen_at >= lasts
    return (Step.TAKE if free else Step.WAIT), view


def expired(view: View, now: float, timing: Timing) -> bool:
    """A leader that has not renewed within the deadline must stop, whatever the reason."""
    return view.leading and now - view.renewed >= timing.renew_deadline


class LeaderElector:
    """Runs for one process. `acquire` returns once it leads; `hold` returns when it no longer may."""

    def __init__(
        self,
        kube: KubeClient,
        clock: Clock,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
        on_change: Callable[[bool], None] = lambda _leading: None,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._ref = Ref(LEASE, namespace, name)
        self._me = identity
        self._timing = timing or Timing()
        self._on_change = on_change
        self._view = View()

    @property
    def leading(self) -> bool:
        """Whether this process may act now."""
        return self._view.leading and not expired(self._view, self._clock.monotonic(), self._timing)

    async def acquire(self) -> None:
        """Wait until this process leads."""
        # Another process decides when, and it sets no Event.
        while not await self._attempt():  # noqa: ASYNC110
            await asyncio.sleep(self._timing.retry)
        _log.info("leading as %s", self._me)
        self._on_change(True)

    async def hold(self) -> str:
        """Renew; the reason when the lease was lost."""
        while True:
            await asyncio.sleep(self._timing.retry)
            try:
                # A request that hangs must not carry the leader over its deadline.
                async with asyncio.timeout(self._left()):
                    held = await self._attempt()
            except TimeoutError:
                held = True
            now = self._clock.monotonic()
            if not held or expired(self._view, now, self._timing):
                self._view = replace(self._view, leading=False)
                self._on_change(False)
                return "another process holds the lease" if not held else "the lease could not be renewed in time"

    async def release(self) -> None:
        """Let another process take over at once."""
        if not self._view.leading:
            return
        self._view = replace(self._view, leading=False)
        self._on_change(False)
        try:
            lease = await self._kube.get(self._ref)
            if (lease.get("spec") or {}).get("holderIdentity") == self._me:
                spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._kube.replace({**lease, "spec": spec})
        except ApiFailure as failure:
            _log.warning("lease not released: %s", failure)

    def _left(self) -> float:
        return max(0.1, self._view.renewed + self._timing.renew_deadline - self._clock.monotonic())

    async def _attempt(self) -> bool:
        """One look at the lease and what follows from it; whether this process leads (or does not know better)."""
        try:
            lease = await self._read()
            # Before the write: the lease counts from when it was asked for, not from when the answer came.
            now = self._clock.monotonic()
            step, self._view = next_step(self._view, lease, self._me, now, self._timing)
            if step in (Step.TAKE, Step.RENEW):
                await self._write(lease)
                self._view = replace(self._view, leading=True, renewed=now)
            return step in (Step.TAKE, Step.RENEW)
        except Conflict:
            return self._view.leading
        except ApiFailure as failure:
            _log.warning("lease: %s", failure)
            return self._view.leading

    async def _read(self) -> Manifest | None:
        try:
            return await self._kube.get(self._ref)
        except NotFound:
            return None

    async def _write(self, lease: Manifest | None) -> None:
        now = rfc3339_micro(self._clock.now())
        before: dict[str, Any] = (lease or {}).get("spec") or {}
        taken = before.get("holderIdentity") != self._me
        spec = {
            "holderIdentity": self._me,
            "leaseDurationSeconds": int(self._timing.duration),
            "acquireTime": now if taken else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (1 if taken and lease else 0),
        }
        if lease is None:
            metadata = {"namespace": self._ref.namespace, "name": self._ref.name}
            manifest = {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata}
            await self._kube.create({**manifest, "spec": spec})
        else:
            await self._kube.replace({**lease, "spec": spec})
