"""The tier that pods share, in Redis. It fails open: down, slow, full, restarting or lying, Redis never costs more than
its deadline, and after a few failures nothing at all.

Keys are `{prefix}:{namespace}:{epoch}:{digest}`; the namespace stands for the engine's identity, the epoch is a random
token in `{prefix}:{namespace}:epoch`. Each look-up reads the epoch along with its keys, so that an invalidation is seen
by all pods with their next look-up and costs no scan; a lost epoch is replaced by a fresh one, which makes everything
older unreachable. Look-ups of one turn of the event loop travel in one MGET.
"""

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from time import monotonic, time
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from trimtab.sidecar.cache.breaker import CircuitBreaker
from trimtab.sidecar.cache.codec import decode, encode
from trimtab.sidecar.config import RedisCache
from trimtab.sidecar.interfaces import Entry, Key

log = logging.getLogger(__name__)

MAX_BATCH = 128
MAX_UNDER_WAY = 4  # look-ups at one time; those that come meanwhile wait and travel together
MAX_PENDING_WRITES = 256
MAX_PENDING_BYTES = 32 * 1024 * 1024
PATIENCE = 1.0  # seconds for a command that nobody waits for any more
EPOCH_PERIOD = 5.0  # seconds within which a pod without look-ups notices an invalidation
_THREAD_FROM = 128 * 1024  # bytes of body from which compression leaves the event loop


class RedisTier:
    """Implements `RemoteTier`. Belongs to one event loop."""

    def __init__(
        self,
        config: RedisCache,
        *,
        namespace: bytes,
        secret: bytes,
        max_entry_bytes: int,
        on_invalidated: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_invalidated` is called when another pod has invalidated everything: the memory tier should follow."""
        self._timeout = config.timeout_seconds
        self._ttl = config.ttl_seconds
        self._secret = secret
        self._max_entry_bytes = max_entry_bytes
        self._on_invalidated = on_invalidated
        self._base = f"{config.prefix}:{namespace.hex()}:"
        self._epoch: bytes | None = None  # None: nothing may be read or written yet
        self._last_epoch: bytes | None = None  # for noticing a change
        self._due: bytes | None = None  # an epoch that Redis has still to be told
        self._breaker = CircuitBreaker()
        self._client: Any = redis.asyncio.Redis.from_url(
            config.url,
            socket_connect_timeout=PATIENCE,
            socket_timeout=PATIENCE,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._under_way = 0
        self._waiting: list[tuple[Key, asyncio.Future[Entry | None]]] = []
        self._writes: deque[tuple[Key, Entry]] = deque()
        self._write_bytes = 0
        self._idle = asyncio.Event()  # set: no writer runs
        self._idle.set()
        self._watching = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._counts = dict.fromkeys(("lookups", "hits", "errors", "corrupt", "writes", "dropped_writes"), 0)

    # --- look-ups

    async def get(self, key: Key) -> Entry | None:
        """See `RemoteTier.get`."""
        if self._closed or not self._breaker.allows(monotonic()):
            return None
        future: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, future))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._depart)
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError as error:
            self._failed(error)
            return None

    def _depart(self) -> None:
        """Send what has gathered, as far as the bound on look-ups under way allows."""
        self._waiting = [(key, future) for key, future in self._waiting if not future.done()]
        while self._waiting and self._under_way < MAX_UNDER_WAY:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            self._under_way += 1
            self._spawn(self._fetch(batch))
        self._watch()

    async def _fetch(self, batch: list[tuple[Key, asyncio.Future[Entry | None]]]) -> None:
        """Outlives those who asked: a command that is broken off costs its connection, and connecting may be slow."""
        values: list[bytes | None] = [None] * len(batch)
        self._counts["lookups"] += len(batch)
        start = monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                values = await self._read([key for key, _ in batch])
            if monotonic() - start <= self._timeout:
                self._breaker.succeeded()
        except Exception as error:  # noqa: BLE001 - the client's parser reads what a stranger may have sent
            self._failed(error)
        finally:
            self._under_way -= 1
            for (key, future), value in zip(batch, values, strict=True):
                if not future.done():
                    future.set_result(self._believed(key, value))
        self._depart()

    async def _read(self, keys: list[Key]) -> list[bytes | None]:
        """Values under the current epoch, which comes with them; asked again once when it was another than thought."""
        if self._epoch is None:
            await self._learn_epoch()
        for _ in range(2):
            epoch = self._epoch
            if epoch is None:
                break
            names = [self._name(epoch, key) for key in keys]
            answer = await self._client.mget([self._base + "epoch", *names])
            if not isinstance(answer, list) or len(answer) != 1 + len(names):
                raise RedisError("the answer has not the shape of the question")
            if answer[0] == self._epoch == epoch:
                return answer[1:]
            await self._learn_epoch()
        return [None] * len(keys)

    def _believed(self, key: Key, value: bytes | None) -> Entry | None:
        if value is None:
            return None
        entry = None
        if isinstance(value, bytes):
            entry = decode(key, value, self._secret, max_body=self._max_entry_bytes, tier="redis")
        if entry is None:
            self._counts["corrupt"] += 1
            return None
        if time() >= entry.created + entry.ttl:
            return None
        self._counts["hits"] += 1
        return entry

    # --- the epoch

    def _name(self, epoch: bytes, key: Key) -> str:
        return f"{self._base}{epoch.hex()}:{key.digest.hex()}"

    async def _learn_epoch(self) -> None:
        """Take over the epoch that Redis holds, or give it one; first of all a new one if an invalidation is due."""
        name = self._base + "epoch"
        if self._due is not None:
            due = self._due
            await self._client.set(name, due)
            self._epoch, self._due = due, None if self._due == due else self._due
            return
        found = await self._client.get(name)
        if not isinstance(found, bytes) or not found:
            await self._client.set(name, secrets.token_bytes(8), nx=True)
            found = await self._client.get(name)
            if not isinstance(found, bytes):
                raise RedisError("no epoch could be set")
        if found != self._epoch and self._due is None:
            known, self._epoch = self._last_epoch, found
            self._last_epoch = found
            if known is not None and known != found:
                self._on_invalidated()

    async def clear(self) -> None:
        """See `RemoteTier.clear`. While Redis cannot be reached, nothing is read or written, until it has been told.

        Unreachable entries leave Redis by their time to live.
        """
        self._writes.clear()
        self._write_bytes = 0
        self._due, self._epoch = secrets.token_bytes(8), None
        self._last_epoch = self._due
        try:
            async with asyncio.timeout(PATIENCE):
                await self._learn_epoch()
        except Exception as error:  # noqa: BLE001 - as in _fetch
            self._failed(error)
        self._watch()

    def _watch(self) -> None:
        if not self._watching and not self._closed:
            self._watching = True
            self._spawn(self._follow_epoch())

    async def _follow_epoch(self) -> None:
        while True:
            await asyncio.sleep(EPOCH_PERIOD)
            if not self._breaker.allows(monotonic()):
                continue
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._learn_epoch()
                self._breaker.succeeded()
            except Exception as error:  # noqa: BLE001 - as in _fetch
                self._failed(error)

    # --- writes

    def put(self, key: Key, entry: Entry) -> None:
        """See `RemoteTier.put`."""
        if self._closed or self._breaker.is_open or entry.size > self._max_entry_bytes:
            self._counts["dropped_writes"] += 1
            return
        if len(self._writes) >= MAX_PENDING_WRITES or self._write_bytes + entry.size > MAX_PENDING_BYTES:
            self._counts["dropped_writes"] += 1
            return
        self._writes.append((key, entry))
        self._write_bytes += entry.size
        if self._idle.is_set():
            self._idle.clear()
            self._spawn(self._write())

    async def _write(self) -> None:
        try:
            while self._writes:
                key, entry = self._writes.popleft()
                self._write_bytes -= entry.size
                await self._write_one(key, entry)
        finally:
            self._idle.set()

    async def _write_one(self, key: Key, entry: Entry) -> None:
        ttl = entry.ttl if self._ttl is None else self._ttl
        left = round((entry.created + ttl - time()) * 1000)
        if left <= 0 or self._breaker.is_open:
            self._counts["dropped_writes"] += 1
            return
        lasting = replace(entry, ttl=ttl)
        if entry.size < _THREAD_FROM:
            data = encode(key, lasting, self._secret)
        else:
            data = await asyncio.to_thread(encode, key, lasting, self._secret)
        try:
            async with asyncio.timeout(PATIENCE):
                if self._epoch is None:
                    await self._learn_epoch()
                if self._epoch is not None:
                    await self._client.set(self._name(self._epoch, key), data, px=left)
                    self._counts["writes"] += 1
            self._breaker.succeeded()
        except Exception as error:  # noqa: BLE001 - as in _fetch
            self._counts["dropped_writes"] += 1
            self._failed(error)

    # --- the rest

    def _failed(self, error: Exception) -> None:
        self._counts["errors"] += 1
        was_open = self._breaker.is_open
        self._breaker.failed(monotonic())
        if self._breaker.is_open and not was_open:
            log.warning("Redis is left alone for a while: %s", type(error).__name__)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Write what is queued (for a second at most) and let go."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), PATIENCE)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, future in self._waiting:
            if not future.done():
                future.set_result(None)
        try:
            await self._client.aclose()
        except (RedisError, OSError):
            log.debug("Redis connection ended with an error")

    def metrics(self) -> Mapping[str, float]:
        """See `RemoteTier.metrics`."""
        counts = {f"trimtab_redis_{name}_total": float(count) for name, count in self._counts.items()}
        counts["trimtab_redis_breaker_open"] = float(self._breaker.is_open)
        counts["trimtab_redis_breaker_opened_total"] = float(self._breaker.opened)
        counts["trimtab_redis_pending_writes"] = float(len(self._writes))
        return counts
