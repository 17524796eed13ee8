"""Discrete-event simulation of one deployment: balancer, sidecars with limit, queue and cache, engines, scaling.

Deterministic: the same workload, settings, policy and seed give the same records. The policy is asked at fixed
intervals and knows nothing but its snapshots.
"""

import heapq
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from trimtab.catalog.steptime import StepTimeModel
from trimtab.simulation.balancing import BalancerName, make_balancer
from trimtab.simulation.caching import AnswerCache, CacheSettings
from trimtab.simulation.monitoring import Monitor
from trimtab.simulation.policy import Action, Policy
from trimtab.simulation.records import Change, Outcome, Records, ReplicaSpan, Result
from trimtab.simulation.replica import FOREVER, Admission, Phase, Replica
from trimtab.simulation.requests import CHUNK_TOKENS, Entry
from trimtab.simulation.settings import Settings
from trimtab.simulation.workload import Workload


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """The deployment and its surroundings."""

    engine: Settings
    times: StepTimeModel
    replicas: int = 1
    """Ready at the start."""
    max_replicas: int | None = None
    """More are not created, whatever the policy says: the cluster has no more GPUs."""
    boot_s: float = 120.0
    """From creation to readiness."""
    drain_s: float = 600.0
    """After that a draining replica is stopped and its requests are lost."""
    balancer: BalancerName = "random"
    admission: Admission = field(default_factory=Admission)
    cache: CacheSettings = field(default_factory=CacheSettings)
    hold_s: float = 0.0
    """How long a request waits for the first ready replica; 0: it fails at once, as behind a Service."""
    overtime_s: float = 7200.0
    """After the end of the workload; what is still open then stays open in the records."""
    seed: int = 0


class Observer(Protocol):
    """Anything that wants to see every snapshot's effect, for reports."""

    def __call__(self, time: float, wanted: int, ready: int, limit: int | None) -> None:
        """Called after each decision."""
        ...


class Fleet:
    """One run. `run` may be called once."""

    def __init__(self, settings: FleetSettings, workload: Workload, policy: Policy) -> None:
        self.settings = settings
        self.workload = workload
        self.policy = policy
        self.wanted = settings.replicas
        self.limit = settings.admission.max_in_flight
        self.replicas: list[Replica] = []
        self.spans: list[ReplicaSpan] = []
        self.changes: list[Change] = []
        count = len(workload)
        self.sent = [float("nan")] * count
        self.first = [float("nan")] * count
        self.end = [float("nan")] * count
        self.tokens = list(workload.output_tokens)
        self.outcome = [Outcome.OPEN.value] * count
        self.where = [-1] * count
        self._ready: list[Replica] = []
        self._balancer = make_balancer(settings.balancer, settings.seed)
        self._caches: dict[int, AnswerCache] = {}
        self._alarms: list[tuple[float, int, Replica]] = []
        self._events: list[tuple[float, int, str, Replica | None]] = []
        self._serial = 0
        self._held: list[tuple[int, float]] = []
        self._passes = 0
        self._monitor = Monitor()

    # ---- the clock --------------------------------------------------------------------------------------------

    def run(self, observer: Observer | None = None) -> Result:
        """Play the whole workload; ends when the last request has ended."""
        for _ in range(self.settings.replicas):
            self._create(0.0, 0.0)
        self._push(0.0, "decide", None)
        arrivals, alarms, events = self.workload.arrival_s, self._alarms, self._events
        position, count, now = 0, len(arrivals), 0.0
        last = self.workload.span_s + self.settings.overtime_s
        while True:
            arrival = arrivals[position] if position < count else FOREVER
            alarm = alarms[0][0] if alarms else FOREVER
            event = events[0][0] if events else FOREVER
            if event <= arrival and event <= alarm:
                if event > last or (position >= count and not self._monitor.open):
                    break
                now = event
                self._happen(now, observer)
            elif alarm <= arrival:
                now, _, replica = heapq.heappop(alarms)
                if replica.alarm == now and replica.phase != Phase.GONE:
                    self._wake(now, replica)
            else:
                now = arrival
                self._arrive(now, position)
                position += 1
        return self._result(max(now, self.workload.span_s))

    def _push(self, time: float, kind: str, replica: Replica | None) -> None:
        self._serial += 1
        heapq.heappush(self._events, (time, self._serial, kind, replica))

    def _happen(self, now: float, observer: Observer | None) -> None:
        _, _, kind, replica = heapq.heappop(self._events)
        if kind == "decide":
            self._decide(now)
            if observer is not None:
                observer(now, self.wanted, len(self._ready), self.limit)
            self._push(now + self.policy.interval_s, "decide", None)
        elif kind == "ready" and replica is not None and replica.phase == Phase.BOOTING:
            replica.phase = Phase.READY
            self._ready.append(replica)
            held, self._held = self._held, []
            for request, since in held:
                self._place(now, request, since)
        elif kind == "stop" and replica is not None and replica.phase == Phase.DRAINING:
            self._stop(now, replica)
        elif kind == "unheld":
            self._give_up_holding(now)

    # ---- requests ---------------------------------------------------------------------------------------------

    def _arrive(self, now: float, request: int) -> None:
        self._monitor.arrived(now)
        self._place(now, request, now)

    def _place(self, now: float, request: int, since: float) -> None:
        if not self._ready:
            if self.settings.hold_s > 0 and now < since + self.settings.hold_s:
                self._held.append((request, since))
                self._push(since + self.settings.hold_s, "unheld", None)
            else:
                self._refuse(now, request, Outcome.UNAVAILABLE)
            return
        replica = self._balancer.choose(self._ready)
        cache = self._cache(replica)
        if cache is not None:
            key = self.workload.keys[request]
            if cache.hit(key, now):
                self._finish_hit(now, request, replica, Outcome.HIT)
                return
            if cache.join(key, request):
                return
        self._admit(now, request, replica)

    def _admit(self, now: float, request: int, replica: Replica) -> None:
        admission = self.settings.admission
        if self.limit is None or replica.in_flight < self.limit:
            self._send(now, request, replica, now)
            return
        self._expire(now, replica)
        if admission.max_queue is not None and len(replica.queue) >= admission.max_queue:
            self._refuse(now, request, Outcome.REJECTED, replica)
            return
        replica.queue.append((request, now))
        self._monitor.queue_changed(now, 1)

    def _send(self, now: float, request: int, replica: Replica, since: float) -> None:
        workload, engine = self.workload, replica.engine
        prompt, answer = workload.prompts[request], workload.output_tokens[request]
        asked = answer if workload.max_new_tokens is None else max(answer, workload.max_new_tokens)
        if engine.refuses(prompt.tokens, min(asked, CHUNK_TOKENS)) is not None:
            self._refuse(now, request, Outcome.REFUSED, replica)
            return
        if not engine.try_permit():
            self._refuse(now, request, Outcome.REJECTED, replica)
            return
        replica.in_flight += 1
        self.sent[request] = now
        self.where[request] = replica.number
        self._monitor.sent(now, now - since)
        entry = replica.submit(now, prompt, asked, None if asked == answer else answer)
        entry.payload = request
        self._set_alarm(replica)

    def _expire(self, now: float, replica: Replica) -> None:
        """Requests whose patience has ended leave the queue; they are at its head, as all have the same."""
        patience = self.settings.admission.queue_timeout_s
        if patience is None:
            return
        queue = replica.queue
        while queue and queue[0][1] + patience <= now:
            request, since = queue.popleft()
            self._monitor.queue_changed(now, -1)
            self._refuse(since + patience, request, Outcome.TIMED_OUT, replica)

    def _wake(self, now: float, replica: Replica) -> None:
        for entry in replica.wake(now):
            self._finish(now, entry, replica)
        self._set_alarm(replica)
        if replica.queue:
            self._admit_waiting(now, replica)
        if replica.phase == Phase.DRAINING and not replica.in_flight and not replica.queue:
            self._remove(now, replica)

    def _admit_waiting(self, now: float, replica: Replica) -> None:
        self._expire(now, replica)
        while replica.queue and (self.limit is None or replica.in_flight < self.limit):
            request, since = replica.queue.popleft()
            self._monitor.queue_changed(now, -1)
            self._send(now, request, replica, since)

    def _set_alarm(self, replica: Replica) -> None:
        if replica.alarm != FOREVER:
            self._serial += 1
            heapq.heappush(self._alarms, (replica.alarm, self._serial, replica))

    def _finish(self, now: float, entry: Entry, replica: Replica) -> None:
        request = entry.payload
        assert isinstance(request, int)  # noqa: S101 - set by _send
        replica.in_flight -= 1
        replica.engine.release_permit()
        self.first[request] = first = entry.first_token_at if entry.first_token_at is not None else now
        self.end[request] = now
        self.tokens[request] = entry.generated
        if entry.finish_reason == "error":
            self.outcome[request] = Outcome.BROKEN
            self._monitor.ended(now, lost=True)
            self._fail_shared(now, request, replica)
            return
        self.outcome[request] = Outcome.SERVED
        arrival = self.workload.arrival_s[request]
        self._monitor.served(now, arrival, first, entry)
        cache = self._cache(replica)
        if cache is not None:
            for other in cache.answered(self.workload.keys[request], now):
                self._finish_hit(now, other, replica, Outcome.SHARED)

    def _finish_hit(self, now: float, request: int, replica: Replica, outcome: Outcome) -> None:
        self.first[request] = self.end[request] = now + self.settings.cache.hit_s
        self.outcome[request] = outcome
        self.where[request] = replica.number
        self._monitor.hit()

    def _refuse(self, now: float, request: int, outcome: Outcome, replica: Replica | None = None) -> None:
        self.end[request] = now
        self.outcome[request] = outcome
        self._monitor.refused(lost=outcome == Outcome.UNAVAILABLE)
        if replica is not None:
            self.where[request] = replica.number
            self._fail_shared(now, request, replica)

    def _fail_shared(self, now: float, request: int, replica: Replica) -> None:
        """The first of several equal requests failed: the next one tries, as the sidecar lets it."""
        cache = self._cache(replica)
        if cache is None:
            return
        for other in cache.failed(self.workload.keys[request]):
            self._place(now, other, now)

    def _cache(self, replica: Replica) -> AnswerCache | None:
        scope = self.settings.cache.scope
        if scope == "off":
            return None
        key = replica.number if scope == "pod" else -1
        cache = self._caches.get(key)
        if cache is None:
            cache = self._caches[key] = AnswerCache(self.settings.cache)
        return cache

    def _give_up_holding(self, now: float) -> None:
        patience = self.settings.hold_s
        for request, _ in [item for item in self._held if item[1] + patience <= now]:
            self._refuse(now, request, Outcome.UNAVAILABLE)
        self._held = [item for item in self._held if item[1] + patience > now]

    # ---- scaling ----------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> None:
        for replica in self.replicas:
            if replica.queue:
                self._expire(now, replica)
        snapshot = self._monitor.snapshot(now, self.wanted, self.limit, self.replicas)
        self._apply(now, self.policy.decide(snapshot))

    def _apply(self, now: float, action: Action) -> None:
        if action.limit is not None and action.limit != self.limit:
            self.changes.append(Change(now, "limit", self.limit, action.limit, action.note))
            self.limit = action.limit
            for replica in self.replicas:
                self._admit_waiting(now, replica)
        if action.replicas is not None and action.replicas != self.wanted:
            self.changes.append(Change(now, "replicas", self.wanted, action.replicas, action.note))
            self.wanted = action.replicas
        self._scale(now)

    def _scale(self, now: float) -> None:
        wanted = self.wanted
        if self.settings.max_replicas is not None:
            wanted = min(wanted, self.settings.max_replicas)
        active = [replica for replica in self.replicas if replica.phase in (Phase.BOOTING, Phase.READY)]
        for _ in range(wanted - len(active)):
            self._create(now, self.settings.boot_s)
        if wanted < len(active):
            # As a ReplicaSet: those that are not ready first, then the youngest.
            order = sorted(active, key=lambda replica: (replica.phase, -replica.created_at, -replica.number))
            for replica in order[: len(active) - wanted]:
                self._retire(now, replica)

    def _create(self, now: float, boot_s: float) -> None:
        number = len(self.spans) + len(self.replicas)
        replica = Replica(number, self.settings.engine, self.settings.times, now, now + boot_s)
        self.replicas.append(replica)
        if boot_s > 0:
            self._push(now + boot_s, "ready", replica)
        else:
            replica.phase = Phase.READY
            self._ready.append(replica)

    def _retire(self, now: float, replica: Replica) -> None:
        booting = replica.phase == Phase.BOOTING
        replica.phase = Phase.DRAINING
        if not booting:
            self._ready.remove(replica)
        if not replica.in_flight and not replica.queue:
            self._remove(now, replica)
        else:
            self._push(now + self.settings.drain_s, "stop", replica)

    def _stop(self, now: float, replica: Replica) -> None:
        """The grace period is over: what the replica had is lost."""
        for request, _ in replica.queue:
            self._monitor.queue_changed(now, -1)
            self._refuse(now, request, Outcome.BROKEN, replica)
        replica.queue.clear()
        for request, where in enumerate(self.where):
            if where == replica.number and self.outcome[request] == Outcome.OPEN:
                self.outcome[request] = Outcome.BROKEN
                self.end[request] = now
                self._monitor.ended(now, lost=True)
                self._fail_shared(now, request, replica)
        self._remove(now, replica)

    def _remove(self, now: float, replica: Replica) -> None:
        replica.phase = Phase.GONE
        replica.gone_at = now
        self._passes += replica.engine.passes
        self._monitor.forget(replica)
        self.replicas.remove(replica)
        self._caches.pop(replica.number, None)
        self.spans.append(ReplicaSpan(replica.number, replica.created_at, replica.ready_at, now))

    def _result(self, end: float) -> Result:
        for replica in list(self.replicas):
            self._remove(end, replica)
        prompts = [prompt.tokens for prompt in self.workload.prompts]
        records = Records(
            arrival_s=np.asarray(self.workload.arrival_s, dtype=np.float64),
            sent_s=np.asarray(self.sent, dtype=np.float64),
            first_s=np.asarray(self.first, dtype=np.float64),
            end_s=np.asarray(self.end, dtype=np.float64),
            input_tokens=np.asarray(prompts, dtype=np.int64),
            output_tokens=np.asarray(self.tokens, dtype=np.int64),
            outcome=np.asarray(self.outcome, dtype=np.int64),
            replica=np.asarray(self.where, dtype=np.int64),
        )
        spans = tuple(sorted(self.spans, key=lambda span: span.number))
        return Result(records, spans, tuple(self.changes), end, self._passes)
