"""The engine's preStop hook: the engine is told to stop only once nothing needs it any more."""

import asyncio
from typing import Any

import pytest

from trimtab.sidecar import admin

from .conftest import Engine, Received, Start, json_answer, post


@pytest.fixture(autouse=True)
def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "SETTLE", 0.2)


class Held:
    """An engine script that answers when told to."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, request: Received, reader: Any, writer: Any) -> None:
        self.begun.set()
        await self.release.wait()
        writer.write(json_answer({"generated_text": "a"}))


async def test_the_hook_waits_for_requests_at_the_engine_and_in_the_queue(engine: Engine, start: Start) -> None:
    held = Held()
    engine.on("/generate", held)
    sidecar = await start(admission={"maxInFlight": 1})
    requests = [asyncio.create_task(sidecar.send(post("/generate", {"inputs": f"n{n}"}))) for n in range(2)]
    async with asyncio.timeout(10):
        await held.begun.wait()
    hook = asyncio.create_task(sidecar.admin_get("/drain"))
    await asyncio.sleep(0.5)
    assert not hook.done()
    assert (await sidecar.admin_get("/readyz")).status == 503
    late = asyncio.create_task(sidecar.send(post("/generate", {"inputs": "late"})))
    await asyncio.sleep(0.1)
    held.release.set()
    answers = await asyncio.gather(*requests, late)
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert (await hook).json()["active"] == 0
    assert engine.calls("/generate") == 3


async def test_the_hook_gives_up_after_the_drain_time(engine: Engine, start: Start) -> None:
    held = Held()
    engine.on("/generate", held)
    sidecar = await start(drainTimeoutSeconds=0.4)
    request = asyncio.create_task(sidecar.send(post("/generate", {"inputs": "slow"})))
    async with asyncio.timeout(10):
        await held.begun.wait()
    assert (await sidecar.admin_get("/drain")).json()["active"] == 1
    held.release.set()
    assert (await request).status == 200


async def test_asking_does_not_take_a_pod_out_of_service_for_good(engine: Engine, start: Start) -> None:
    sidecar = await start()
    await sidecar.admin_get("/drain")
    assert (await sidecar.admin_get("/readyz")).status == 200
    sidecar.app.stop()
    await sidecar.admin_get("/drain")
    assert (await sidecar.admin_get("/readyz")).status == 503
