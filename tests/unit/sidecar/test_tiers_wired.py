"""Redis and the semantic tier behind running sidecars."""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.sidecar.assembly import build_parts
from trimtab.sidecar.config import ConfigError, parse_config

from .conftest import CHAT, Answer, Engine, Received, Sidecar, Start, chat_events, json_answer

PATH = "/v1/chat/completions"


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def chat(text: str = "how do i reset my password", **more: Any) -> dict[str, Any]:
    return {"model": "tgi", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def cache_of(answer: Answer) -> str:
    return (answer.header(b"cache-status") or b"").decode()


async def written(sidecar: Sidecar, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while (await sidecar.metrics())["trimtab_redis_writes_total"] < count:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_pods_share_answers_through_redis(stream: bool, redis_url: str, engine: Engine, start: Start) -> None:
    cache = {"redis": {"url": redis_url, "timeoutSeconds": 5}}
    one, two = await start(cache=cache), await start(cache=cache)
    first = await one.post(PATH, chat(stream=stream))
    await written(one)
    second = await two.post(PATH, chat(stream=stream))
    assert second.body == first.body
    if stream:
        assert second.body == b"".join(chat_events(3))
    assert "; hit" in cache_of(second) and "detail=redis" in cache_of(second)
    third = await two.post(PATH, chat(stream=stream))
    assert third.body == first.body and "redis" not in cache_of(third)  # now in its own memory
    assert engine.calls(PATH) == 1


async def test_tenants_do_not_meet_in_redis(redis_url: str, engine: Engine, start: Start) -> None:
    cache = {"redis": {"url": redis_url, "timeoutSeconds": 5}}
    one, two = await start(cache=cache), await start(cache=cache)
    await one.post(PATH, chat(), authorization="Bearer a")
    await written(one)
    assert "hit" not in cache_of(await two.post(PATH, chat(), authorization="Bearer b"))
    assert "; hit" in cache_of(await two.post(PATH, chat(), authorization="Bearer a"))


async def test_a_shared_answer_that_is_too_old_for_a_client_is_made_anew(
    redis_url: str, engine: Engine, start: Start
) -> None:
    cache = {"redis": {"url": redis_url, "timeoutSeconds": 5}}
    one, two = await start(cache=cache), await start(cache=cache)
    await one.post(PATH, chat())
    await written(one)
    await asyncio.sleep(1.1)
    picky, easy = await asyncio.gather(
        two.post(PATH, chat(), cache_control="max-age=1"), two.post(PATH, chat(), cache_control="max-age=100")
    )
    assert "hit" not in cache_of(picky) and "; hit" in cache_of(easy)
    assert picky.json() == easy.json() == CHAT
    assert engine.calls(PATH) == 2
    await two.settled()


async def test_redis_that_is_not_there_costs_no_request(engine: Engine, start: Start) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    sidecar = await start(cache={"redis": {"url": f"redis://127.0.0.1:{port}"}})
    answers = await asyncio.gather(*(sidecar.post(PATH, chat(str(n))) for n in range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    assert engine.calls(PATH) == 20


VOCABULARY = ["how", "do", "i", "reset", "my", "password", "please", "the"]


async def embed(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    texts = json.loads(request.body)["input"]
    rows = [[text.lower().split().count(word) for word in VOCABULARY] for text in texts]
    writer.write(json_answer({"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]}))


async def test_tenants_who_opted_in_get_answers_to_reworded_prompts(engine: Engine, start: Start) -> None:
    engine.on("/v1/embeddings", embed)  # any server will do; this one plays both parts
    semantic = {
        "enabled": True,
        "endpoint": f"http://127.0.0.1:{engine.port}",
        "threshold": 0.7,
        "tenants": ["acme"],
        "timeoutSeconds": 5,
    }
    sidecar = await start(cache={"semantic": semantic}, tenancy={"header": "x-tenant"})
    assert sidecar.gateway.parts.semantic is not None
    sidecar.gateway.parts.semantic._verified_share = 0.0  # type: ignore[attr-defined]
    for tenant, outcome in (("acme", "detail=semantic"), ("other", "fwd=uri-miss")):
        await sidecar.post(PATH, chat(), x_tenant=tenant)
        answer = await sidecar.post(PATH, chat("please how do i reset the password"), x_tenant=tenant)
        assert outcome in cache_of(answer)
        assert answer.json() == CHAT
    answer = await sidecar.post(PATH, chat("please how do i reset the password"), x_tenant="x", authorization="acme")
    assert "semantic" not in cache_of(answer)
    metrics = await sidecar.metrics()
    assert metrics["trimtab_semantic_hits_total"] == 1
    assert metrics['trimtab_cache_hits_total{tier="semantic"}'] == 1


@pytest.mark.parametrize("semantic", [{"enabled": True}, {"enabled": True, "modelPath": "/nowhere"}])
def test_a_semantic_cache_without_embedder_is_a_mistake_in_the_configuration(semantic: Any) -> None:
    config = {"upstream": "http://127.0.0.1:1", "identity": {"model": "m"}, "cache": {"semantic": semantic}}
    with pytest.raises(ConfigError, match="semantic"):
        build_parts(parse_config(json.dumps(config).encode()))
