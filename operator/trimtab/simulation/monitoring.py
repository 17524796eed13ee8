"""Counts what happens in a simulated fleet between two snapshots."""

from collections.abc import Sequence

from trimtab.simulation.policy import ReplicaView, Snapshot, Window
from trimtab.simulation.replica import Phase, Replica
from trimtab.simulation.requests import Entry


class Monitor:
    """The metrics of one deployment."""

    def __init__(self) -> None:
        self.open = 0
        """Requests that have arrived and not ended."""
        self._in_flight = 0
        self._queued = 0
        self._gone_passes = 0
        self._gone_s = 0.0
        self._last = 0.0
        self._passes_before = 0
        self._seconds_before = 0.0
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self._since = self._last = now
        self._in_flight_area = self._queued_area = 0.0
        self._arrivals = self._hits = self._rejected = self._errors = 0
        self._tokens_in = self._tokens_out = 0
        self._ttft: list[float] = []
        self._tpot: list[float] = []
        self._latency: list[float] = []
        self._waits: list[float] = []

    def _pass_time(self, now: float) -> None:
        elapsed = now - self._last
        if elapsed > 0:
            self._in_flight_area += self._in_flight * elapsed
            self._queued_area += self._queued * elapsed
            self._last = now

    def arrived(self, now: float) -> None:
        """A request reached the balancer."""
        self.open += 1
        self._arrivals += 1

    def sent(self, now: float, waited: float) -> None:
        """A request went to an engine."""
        self._pass_time(now)
        self._in_flight += 1
        self._waits.append(waited)

    def queue_changed(self, now: float, by: int) -> None:
        """Requests joined or left a sidecar's queue."""
        self._pass_time(now)
        self._queued += by

    def served(self, now: float, arrival: float, first: float, entry: Entry) -> None:
        """An engine finished an answer."""
        self._pass_time(now)
        self.open -= 1
        self._in_flight -= 1
        self._ttft.append(first - arrival)
        self._latency.append(now - arrival)
        if entry.generated > 1:
            self._tpot.append((now - first) / (entry.generated - 1))
        self._tokens_in += entry.input_tokens - entry.chunk_start
        self._tokens_out += entry.generated

    def ended(self, now: float, *, lost: bool) -> None:
        """A request left its engine without an answer."""
        self._pass_time(now)
        self.open -= 1
        self._in_flight -= 1
        self._errors += lost

    def hit(self) -> None:
        """An answer without the engine."""
        self.open -= 1
        self._hits += 1

    def refused(self, *, lost: bool) -> None:
        """A request that never reached an engine."""
        self.open -= 1
        if lost:
            self._errors += 1
        else:
            self._rejected += 1

    def forget(self, replica: Replica) -> None:
        """A replica is gone; its counters stay in the sums."""
        self._gone_passes += replica.decode_passes
        self._gone_s += replica.decode_s

    def snapshot(self, now: float, wanted: int, limit: int | None, replicas: Sequence[Replica]) -> Snapshot:
        """The window that ends now; the next one begins."""
        self._pass_time(now)
        seconds = now - self._since
        passes = self._gone_passes + sum(replica.decode_passes for replica in replicas)
        decode_s = self._gone_s + sum(replica.decode_s for replica in replicas)
        window = Window(
            seconds=seconds,
            arrivals=self._arrivals,
            served=len(self._latency),
            hits=self._hits,
            rejected=self._rejected,
            errors=self._errors,
            tokens_in=self._tokens_in,
            tokens_out=self._tokens_out,
            in_flight=self._in_flight_area / seconds if seconds > 0 else float(self._in_flight),
            queued=self._queued_area / seconds if seconds > 0 else float(self._queued),
            decode_passes=passes - self._passes_before,
            decode_s=decode_s - self._seconds_before,
            ttft_s=self._ttft,
            tpot_s=self._tpot,
            latency_s=self._latency,
            queue_wait_s=self._waits,
        )
        self._passes_before, self._seconds_before = passes, decode_s
        self._reset(now)
        views = tuple(_view(now, replica) for replica in replicas)
        draining = sum(replica.phase == Phase.DRAINING for replica in replicas)
        return Snapshot(now, wanted, limit, views, draining, window)


def _view(now: float, replica: Replica) -> ReplicaView:
    engine = replica.engine
    return ReplicaView(
        number=replica.number,
        ready=replica.phase == Phase.READY,
        age_s=now - replica.created_at,
        in_flight=replica.in_flight,
        queued=len(replica.queue),
        engine_queued=engine.queued,
        kv_reserved_tokens=engine.reserved_tokens,
        kv_capacity_tokens=engine.settings.capacity_tokens,
    )
