"""How requests are spread over the ready replicas."""

import random
from collections.abc import Sequence
from typing import Literal, Protocol

from trimtab.simulation.replica import Replica

BalancerName = Literal["random", "round-robin", "least-outstanding"]


class Balancer(Protocol):
    """Picks a replica for the next request."""

    def choose(self, ready: Sequence[Replica]) -> Replica:
        """One of the ready replicas, of which there is at least one."""
        ...


class RandomBalancer:
    """Each replica is as likely as any other: a Kubernetes Service without session affinity (iptables mode)."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choose(self, ready: Sequence[Replica]) -> Replica:
        """See Balancer."""
        return ready[int(self._random.random() * len(ready))]


class RoundRobin:
    """In turn (IPVS's default, many gateways)."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ready: Sequence[Replica]) -> Replica:
        """See Balancer."""
        self._turn += 1
        return ready[self._turn % len(ready)]


class LeastOutstanding:
    """The replica with the fewest requests, in turn among equals."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ready: Sequence[Replica]) -> Replica:
        """See Balancer."""
        self._turn += 1
        count, offset = len(ready), self._turn
        best, least = ready[offset % count], 1 << 62
        for step in range(count):
            replica = ready[(offset + step) % count]
            load = replica.in_flight + len(replica.queue)
            if load < least:
                best, least = replica, load
                if not load:
                    break
        return best


def make_balancer(name: BalancerName, seed: int) -> Balancer:
    """By name."""
    match name:
        case "random":
            return RandomBalancer(seed)
        case "round-robin":
            return RoundRobin()
        case "least-outstanding":
            return LeastOutstanding()
