"""The Redis tier against a real server, and against servers that are down, slow or lie."""

import asyncio
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from trimtab.sidecar.cache.redis import MAX_PENDING_WRITES, RedisTier
from trimtab.sidecar.config import RedisCache
from trimtab.sidecar.interfaces import Entry, Key

SECRET = b"s"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


class Server:
    """A redis-server of our own on loopback; can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir"]
        self.process = subprocess.Popen([*command, str(self.directory)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as s:
                    s.sendall(b"PING\r\n")
                    if s.recv(16) == b"+PONG\r\n":
                        return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    running = Server(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


Maker = Callable[..., RedisTier]


@pytest.fixture
async def make() -> AsyncIterator[Maker]:
    tiers: list[RedisTier] = []
    prefix = secrets.token_hex(4)

    def made(url: str, **more: object) -> RedisTier:
        # the machine may be busy: the deadline of the tests is not the one of production
        config = RedisCache(url=url, timeout_seconds=float(str(more.pop("timeout", 5.0))), prefix=prefix)
        options: dict[str, object] = {"namespace": b"n", "secret": SECRET, "max_entry_bytes": 10**6, **more}
        tiers.append(RedisTier(config, **options))  # type: ignore[arg-type]
        return tiers[-1]

    yield made
    for tier in tiers:
        await tier.close()


def key(number: int = 1) -> Key:
    return Key(number.to_bytes(32, "big"), stream=False)


def entry(body: bytes = b"answer", *, age: float = 0.0, ttl: float = 60.0) -> Entry:
    return Entry(body, ((b"content-type", b"application/json"),), time.time() - age, ttl, False, 3, 4)


async def stored(tier: RedisTier, k: Key, e: Entry) -> None:
    before = tier.metrics()["trimtab_redis_writes_total"]
    tier.put(k, e)
    async with asyncio.timeout(10):
        while tier.metrics()["trimtab_redis_writes_total"] == before:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)


async def test_an_entry_is_found_by_another_pod_and_after_a_restart(server: Server, make: Maker) -> None:
    e = entry(b"data: x\n\n" * 1000)
    await stored(make(server.url), key(), e)
    found = await make(server.url).get(key())
    assert found is not None
    assert (found.body, found.headers, found.tier) == (e.body, e.headers, "redis")
    assert (found.created, found.ttl, found.prompt_tokens, found.generated_tokens) == (e.created, e.ttl, 3, 4)
    assert await make(server.url).get(key(2)) is None


async def test_other_identities_and_secrets_see_nothing(server: Server, make: Maker) -> None:
    await stored(make(server.url), key(), entry())
    assert await make(server.url, namespace=b"m").get(key()) is None
    stranger = make(server.url, secret=b"other")
    assert await stranger.get(key()) is None
    assert stranger.metrics()["trimtab_redis_corrupt_total"] == 1


async def test_entries_leave_redis_by_their_time_to_live(server: Server, make: Maker) -> None:
    tier = make(server.url)
    await stored(tier, key(), entry(age=59.9, ttl=60.0))
    await asyncio.sleep(0.2)
    assert await tier.get(key()) is None
    tier.put(key(2), entry(age=61.0, ttl=60.0))
    assert tier.metrics()["trimtab_redis_corrupt_total"] == 0


async def test_many_look_ups_of_one_moment_are_all_answered(server: Server, make: Maker) -> None:
    tier = make(server.url)
    for number in range(0, 40, 2):
        await stored(tier, key(number), entry(b"%d" % number))
    found = await asyncio.gather(*(tier.get(key(number % 40)) for number in range(600)))
    bodies = [f.body if f is not None else None for f in found]
    assert bodies == [b"%d" % (n % 40) if n % 2 == 0 else None for n in range(600)]


async def test_an_invalidation_reaches_every_pod(server: Server, make: Maker) -> None:
    dropped: list[str] = []
    one, two = make(server.url), make(server.url, on_invalidated=lambda: dropped.append("two"))
    await stored(one, key(), entry())
    assert await two.get(key()) is not None
    await one.clear()
    assert await two.get(key()) is None
    assert await one.get(key()) is None
    assert dropped == ["two"]
    await stored(one, key(), entry(b"new"))
    found = await two.get(key())
    assert found is not None and found.body == b"new"
    assert dropped == ["two"]


async def test_an_invalidation_while_redis_is_away_is_made_up_for(tmp_path: Path, server: Server, make: Maker) -> None:
    tier = make(server.url)
    await stored(tier, key(), entry())
    assert server.process is not None
    server.process.send_signal(19)  # SIGSTOP: it keeps its data but does not answer
    try:
        await tier.clear()
        assert await tier.get(key()) is None
    finally:
        server.process.send_signal(18)
    async with asyncio.timeout(30):
        while tier.metrics()["trimtab_redis_breaker_open"] or tier._due is not None:
            await asyncio.sleep(0.1)
            assert await tier.get(key()) is None
    assert await make(server.url).get(key()) is None


async def test_a_lost_epoch_makes_older_entries_unreachable(server: Server, make: Maker) -> None:
    tier = make(server.url)
    await stored(tier, key(), entry())
    await tier._client.delete(tier._base + "epoch")
    assert await tier.get(key()) is None
    await stored(tier, key(), entry(b"new"))
    assert await tier.get(key()) is not None


async def test_values_that_others_wrote_are_not_believed(server: Server, make: Maker) -> None:
    tier = make(server.url)
    await stored(tier, key(1), entry(b"one"))
    await stored(tier, key(2), entry(b"two"))
    assert tier._epoch is not None
    names = [tier._name(tier._epoch, key(number)) for number in (1, 2)]
    await tier._client.set(names[1], await tier._client.get(names[0]))  # a right answer in the wrong place
    await tier._client.lpush(tier._name(tier._epoch, key(3)), "x")  # of another type
    await tier._client.set(tier._name(tier._epoch, key(4)), b"garbage")
    assert [await tier.get(key(number)) for number in (2, 3, 4)] == [None, None, None]
    assert tier.metrics()["trimtab_redis_corrupt_total"] == 2
    assert await tier.get(key(1)) is not None


async def test_a_server_that_dies_is_left_alone_and_found_again(tmp_path: Path, make: Maker) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    own = Server(tmp_path)
    own.start()
    try:
        tier = make(own.url)
        await stored(tier, key(), entry())
        own.stop()
        for _ in range(6):
            assert await tier.get(key()) is None
        assert tier.metrics()["trimtab_redis_breaker_open"] == 1
        errors = tier.metrics()["trimtab_redis_errors_total"]
        assert await tier.get(key()) is None  # not even tried
        tier.put(key(), entry())
        assert tier.metrics()["trimtab_redis_errors_total"] == errors
        assert tier.metrics()["trimtab_redis_dropped_writes_total"] >= 1
        own.start()
        async with asyncio.timeout(30):
            while tier.metrics()["trimtab_redis_breaker_open"]:
                await asyncio.sleep(0.1)
                assert await tier.get(key()) is None
        await stored(tier, key(), entry(b"again"))
        found = await tier.get(key())
        assert found is not None and found.body == b"again"
    finally:
        own.stop()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        writer.write(b"*-7\r\n:nan\r\n$999999999999\r\nHTTP/1.1 200 OK\r\n\r\n")


async def _ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        writer.write(b"+OK\r\n" * 4)


async def _closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(4096):
        writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")


@pytest.mark.parametrize("talk", [_silent, _nonsense, _ok, _closes, _refuses])
async def test_a_server_that_is_no_help_never_raises_and_never_answers(talk: Talk, make: Maker) -> None:
    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        port = listener.sockets[0].getsockname()[1]
        tier = make(f"redis://127.0.0.1:{port}", timeout=0.05)
        tier.put(key(), entry())
        for _ in range(8):
            assert await asyncio.gather(*(tier.get(key(n)) for n in range(5))) == [None] * 5
        await tier.clear()
        assert tier.metrics()["trimtab_redis_hits_total"] == 0
        assert tier.metrics()["trimtab_redis_errors_total"] > 0
    finally:
        listener.close()


async def test_cancelling_one_who_asks_leaves_the_others_alone(server: Server, make: Maker) -> None:
    tier = make(server.url)
    await stored(tier, key(), entry())
    asked = [asyncio.ensure_future(tier.get(key())) for _ in range(3)]
    await asyncio.sleep(0)
    asked[1].cancel()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(f, Entry) for f in found] == [True, False, True]
    assert isinstance(found[1], asyncio.CancelledError)


async def test_writes_are_bounded(make: Maker) -> None:
    listener = await asyncio.start_server(_silent, "127.0.0.1", 0)
    try:
        tier = make(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        for number in range(MAX_PENDING_WRITES + 10):
            tier.put(key(number), entry())
        assert tier.metrics()["trimtab_redis_pending_writes"] == MAX_PENDING_WRITES
        assert tier.metrics()["trimtab_redis_dropped_writes_total"] == 10
    finally:
        listener.close()


async def test_a_closed_tier_is_quiet_and_has_written_what_it_was_given(server: Server, make: Maker) -> None:
    tier = make(server.url)
    tier.put(key(), entry())
    await tier.close()
    tier.put(key(2), entry())
    assert await tier.get(key()) is None
    other = make(server.url)
    assert await other.get(key()) is not None
    assert await other.get(key(2)) is None
