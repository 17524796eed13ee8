"""What one process shares: the cache's parts, the engine's connections, admission, metrics, and the way of a hit."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from itertools import islice
from time import monotonic, time
from typing import Any

from trimtab.sidecar.admission import Admission, Bounds
from trimtab.sidecar.client import ClientConnection
from trimtab.sidecar.config import Config, Live
from trimtab.sidecar.control import Control
from trimtab.sidecar.engine import EnginePool
from trimtab.sidecar.exchange import Exchange
from trimtab.sidecar.flight import Flight
from trimtab.sidecar.head import Head, HeadReader, KeyMap
from trimtab.sidecar.hits import Hits
from trimtab.sidecar.interfaces import (
    Call,
    ContextPolicy,
    Entry,
    EntryMaker,
    Key,
    Keyer,
    MemoryTier,
    RemoteTier,
    RequestReader,
    Route,
    SemanticTier,
)
from trimtab.sidecar.metrics import Buckets, Metrics
from trimtab.sidecar.sidecall import SideCaller

SETTLE_DELAY = 0.002  # seconds


@dataclass(slots=True)
class Parts:
    """The pure parts behind the seam; None = switched off."""

    read_call: RequestReader
    keyer: Keyer | None = None
    make_entry: EntryMaker | None = None
    memory: MemoryTier | None = None
    remote: RemoteTier | None = None
    semantic: SemanticTier | None = None
    context: ContextPolicy | None = None
    side: SideCaller | None = None  # how the parts ask the engine


class Gateway:
    """See the module."""

    def __init__(self, config: Config, parts: Parts, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.parts = parts
        self.loop = loop
        self.metrics = Metrics()
        self.engine = EnginePool(config.upstream, config.engine, loop)
        self.admission = Admission(self._bounds(Live()))
        self.flights: dict[bytes, Flight] = {}
        self.flying: set[Flight] = set()
        self.unsettled: dict[Flight, None] = {}
        self.unsettled_by_key: dict[bytes, Flight] = {}
        self.clients: set[ClientConnection] = set()
        self.active = 0  # exchanges
        self.buffered = 0  # bytes of request bodies held
        self.stopping = False  # draining for good
        self.last_answer = 0.0  # when the engine last sent anything
        self.live = Live()
        self.has_remote = parts.remote is not None or parts.semantic is not None
        self.stores_sampled = config.cache.exact.policy == "all"
        self.queue_wait: Buckets = self.metrics.queue_wait.cell()
        self.hits = Hits(self.metrics, parts.memory)
        self._tasks: set[asyncio.Task[None]] = set()
        tenancy = config.tenancy
        self.heads = HeadReader(
            secret=(config.cache.secret or "").encode(),
            tenant_header=tenancy.header.lower().encode() if tenancy and tenancy.header else None,
            shared=tenancy.shared if tenancy else False,
            semantic_tenants=config.cache.semantic.tenants,
            priority_header=config.admission.priority_header.lower().encode()
            if config.admission.priority_header
            else None,
            key_map=self._key_map,
        )
        self._register_gauges()
        if parts.side is not None:
            parts.side.attach(self)

    def _register_gauges(self) -> None:
        metrics, memory = self.metrics, self.parts.memory
        metrics.gauge("trimtab_in_flight", "Sequences at the engine.", lambda: self.admission.in_flight)
        metrics.gauge("trimtab_queue_depth", "Requests waiting.", lambda: self.admission.depth)
        metrics.gauge("trimtab_limit", "Live limit on sequences.", lambda: self.admission.bounds.max_in_flight)
        metrics.gauge("trimtab_connections", "Open client connections.", lambda: len(self.clients))
        metrics.gauge("trimtab_engine_connections", "Open connections to the engine.", self._engine_connections)
        metrics.gauge("trimtab_buffered_bytes", "Request bodies held.", lambda: self.buffered)
        if memory is not None:
            metrics.gauge("trimtab_cache_bytes", "Bytes in the memory tier.", lambda: memory.bytes_used)
            metrics.gauge("trimtab_cache_entries", "Entries in the memory tier.", lambda: len(memory))
            metrics.extra.append(lambda: {"trimtab_cache_evictions_total": memory.evictions})
        for part in (self.parts.remote, self.parts.semantic, self.parts.context):
            if part is not None:
                metrics.extra.append(part.metrics)

    def _engine_connections(self) -> float:
        return self.engine.open_connections

    # --- configuration

    def _bounds(self, live: Live) -> Bounds:
        fixed = self.config.admission
        return Bounds(
            live.max_in_flight or fixed.max_in_flight,
            live.max_queue if live.max_queue is not None else fixed.max_queue,
            live.queue_timeout_seconds or fixed.queue_timeout_seconds,
        )

    def apply_live(self, live: Live) -> None:
        """Take over new limits."""
        self.live = live
        self.admission.resize(self._bounds(live), monotonic())

    @property
    def draining(self) -> bool:
        """Whether readiness is refused and every answer closes its connection."""
        return not self.hits.on

    @draining.setter
    def draining(self, value: bool) -> None:
        self.hits.on = not value

    # --- requests

    def handle(self, client: ClientConnection, head: Head, body: bytes) -> Key | None:
        """A whole request has arrived; its key if it was answered at once from memory."""
        key = self.hits.answer(client, head, body)
        if key is not None:
            return key
        self.active += 1
        self.buffered += len(body)
        exchange = Exchange(self, client, head, body, monotonic())
        client.exchange = exchange
        exchange.begin()
        return None

    def exchange_ended(self, exchange: Exchange) -> None:
        """An exchange has left."""
        self.active -= 1
        self.buffered -= exchange.held

    @staticmethod
    def acceptable(entry: Entry, control: Control, now: float) -> bool:
        """Whether the client's directives allow this entry."""
        age = now - entry.created
        return control.accepts(age, entry.ttl - age)

    def _key_map(self, where: tuple[bytes, Route, bool]) -> KeyMap | None:
        return self.hits.key_map(where) if self.parts.keyer is not None else None

    # --- flights

    def took_off(self, flight: Flight, *, shared: bool) -> None:
        """A flight begins; `shared`: equal requests may join it."""
        self.flying.add(flight)
        if shared and flight.key is not None:
            flight.shared = True
            self.flights[flight.key.digest] = flight

    def landed(self, flight: Flight) -> None:
        """A flight is over."""
        self.flying.discard(flight)
        if flight.shared and flight.key is not None and self.flights.get(flight.key.digest) is flight:
            del self.flights[flight.key.digest]

    def settle_later(self, flight: Flight) -> None:
        """Keep and measure a finished answer when there is a moment: what is being forwarded goes first."""
        self.unsettled[flight] = None
        if flight.key is not None:
            self.unsettled_by_key[flight.key.digest] = flight
        if len(self.unsettled) == 1:
            self.loop.call_later(SETTLE_DELAY, self._settle_next)

    def _settle_next(self) -> None:
        """A few answers a turn: a long stream takes milliseconds to check, and many may end together."""
        for flight in list(islice(self.unsettled, 1 + len(self.unsettled) // 8)):
            flight.settle()
        if self.unsettled:
            self.loop.call_later(0, self._settle_next)

    def settled(self, flight: Flight) -> None:
        """A flight has been kept and measured."""
        self.unsettled.pop(flight, None)
        if flight.key is not None and self.unsettled_by_key.get(flight.key.digest) is flight:
            del self.unsettled_by_key[flight.key.digest]

    def settle_all(self) -> None:
        """Nothing stays unsettled."""
        for flight in list(self.unsettled):
            flight.settle()

    async def find_remote(self, key: Key, call: Call) -> Entry | None:
        """Ask Redis, then the semantic tier. What Redis has is kept in memory too."""
        if self.parts.remote is not None:
            entry = await self.parts.remote.get(key)
            if entry is not None:
                if self.parts.memory is not None:
                    self.parts.memory.put(key, replace(entry, tier="memory"), time())
                return entry
        if self.parts.semantic is not None:
            return await self.parts.semantic.find(key, call)
        return None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run in the background; kept alive until it ends."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- housekeeping

    def sweep(self) -> None:
        """Called several times a second: every deadline of clients, queue and engine."""
        now = monotonic()
        self.admission.expire(now)
        for flight in [flight for flight in self.flying if flight.deadline <= now]:
            flight.expired(now)
        for client in [client for client in self.clients if client.deadline <= now]:
            client.expired(now)
        self.engine.sweep(now)

    async def close(self) -> None:
        """Stop everything at once."""
        for client in list(self.clients):
            client.abort()
        for flight in list(self.flying):
            flight.cancel()
        self.settle_all()
        for task in list(self._tasks):
            task.cancel()
        await self.engine.close()
        for part in (self.parts.remote, self.parts.semantic):
            if part is not None:
                await part.close()
