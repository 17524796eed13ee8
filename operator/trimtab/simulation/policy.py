"""What a scaling policy sees and what it may say. The simulator does not know which policy it runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica at the time of a snapshot."""

    number: int
    ready: bool
    age_s: float
    in_flight: int
    """Requests in the engine."""
    queued: int
    """Requests that wait in the sidecar."""
    engine_queued: int
    """Of those in the engine, requests that wait for a batch."""
    kv_reserved_tokens: int
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Window:
    """What happened since the snapshot before; times in seconds."""

    seconds: float
    arrivals: int = 0
    """Requests that reached the balancer."""
    served: int = 0
    """Answered by engines."""
    hits: int = 0
    """Answered without the engine: cached or shared with an equal request."""
    rejected: int = 0
    """Refused by limit, queue or engine, or given up while waiting."""
    errors: int = 0
    """Lost: no replica, a replica that was stopped, an answer that broke off."""
    tokens_in: int = 0
    """Prompt tokens of the answers that ended."""
    tokens_out: int = 0
    in_flight: float = 0.0
    """Requests in the engines of all replicas, mean over the window."""
    queued: float = 0.0
    """Requests in the queues of all sidecars, mean over the window."""
    decode_passes: int = 0
    decode_s: float = 0.0
    """Time of those passes."""
    ttft_s: Sequence[float] = ()
    """Of each request that an engine served and that ended."""
    tpot_s: Sequence[float] = ()
    """The same, of answers of more than one token."""
    latency_s: Sequence[float] = ()
    queue_wait_s: Sequence[float] = ()
    """In the sidecar."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A deployment at one time."""

    time: float
    wanted: int
    """Replicas that the policy asked for last."""
    limit: int | None
    """Live limit of each sidecar on requests in flight; None: unlimited."""
    replicas: Sequence[ReplicaView]
    """Ready, booting and draining ones; those that drain are not ready and count in `draining`."""
    draining: int
    window: Window

    @property
    def ready(self) -> int:
        """Replicas that take requests."""
        return sum(replica.ready for replica in self.replicas)

    @property
    def booting(self) -> int:
        """Replicas on their way."""
        return len(self.replicas) - self.ready - self.draining


@dataclass(frozen=True, slots=True)
class Action:
    """What to change; None: leave it."""

    replicas: int | None = None
    limit: int | None = None
    note: str = ""
    """Why, for reports."""


class Policy(Protocol):
    """Anything that scales."""

    interval_s: float
    """Time between snapshots."""

    def decide(self, snapshot: Snapshot) -> Action:
        """Look at the deployment and act."""
        ...


@dataclass(slots=True)
class Static:
    """Never changes anything but the first time."""

    replicas: int | None = None
    limit: int | None = None
    interval_s: float = 3600.0
    _done: bool = field(default=False, repr=False)

    def decide(self, snapshot: Snapshot) -> Action:
        """See Policy."""
        if self._done:
            return Action()
        self._done = True
        return Action(self.replicas, self.limit)
