"""Events: one for many, and never too many."""

from dataclasses import replace

from tests.unit.controller.fakes.kube import FakeKube, failing, make_resource
from tests.unit.controller.fakes.world import FakeClock

from trimtab.controller.events import BURST, Events
from trimtab.controller.objects import EVENT
from trimtab.controller.report import Note, transitions

NOTE = Note("Normal", "LoadRose", "Tune", "Replicas raised from 2 to 3.")


def _events() -> tuple[Events, FakeKube, FakeClock, dict[str, object]]:
    kube, clock = FakeKube(), FakeClock()
    resource = kube.seed(make_resource("chat", "team", {}))
    return Events(kube, clock, "operator-0"), kube, clock, resource


def _stored(kube: FakeKube) -> list[dict[str, object]]:
    return [item for ref, item in kube.objects.items() if ref.kind == EVENT]


async def test_the_same_news_again_raises_a_count() -> None:
    events, kube, clock, resource = _events()
    for _ in range(3):
        await events.tell(resource, NOTE)
        clock.seconds += 30
    (event,) = _stored(kube)
    assert event["series"] == {"count": 3, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}
    assert (event["type"], event["reason"], event["action"]) == ("Normal", "LoadRose", "Tune")


async def test_a_restarted_operator_continues_the_series() -> None:
    events, kube, clock, resource = _events()
    await events.tell(resource, NOTE)
    await Events(kube, clock, "operator-1").tell(resource, NOTE)
    (event,) = _stored(kube)
    assert isinstance(event["series"], dict)
    assert event["series"]["count"] == 2


async def test_an_event_that_expired_is_made_anew() -> None:
    events, kube, _, resource = _events()
    await events.tell(resource, NOTE)
    (ref,) = [ref for ref in kube.objects if ref.kind == EVENT]
    kube.remove(ref)
    await events.tell(resource, NOTE)
    assert len(_stored(kube)) == 1


async def test_one_object_cannot_flood_the_cluster_and_recovers() -> None:
    events, kube, clock, resource = _events()
    dropped = []
    events.on_drop = lambda: dropped.append(1)
    for index in range(100):
        await events.tell(resource, replace(NOTE, text=f"{index}"))
    assert len(_stored(kube)) == BURST
    assert len(dropped) == 100 - BURST
    clock.seconds += 60
    await events.tell(resource, replace(NOTE, text="later"))
    assert len(_stored(kube)) == BURST + 1


async def test_long_texts_are_cut_to_what_the_api_takes() -> None:
    events, kube, _, resource = _events()
    await events.tell(resource, replace(NOTE, text="x" * 5000))
    (event,) = _stored(kube)
    assert len(str(event["note"])) == 1024


async def test_trouble_with_events_is_nobody_else_s() -> None:
    events, kube, _, resource = _events()
    kube.fault = lambda _call: failing(403)
    await events.tell(resource, NOTE)
    assert _stored(kube) == []


def test_only_news_is_told() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "2 of 2 pods serve."}
    again = {**ready, "message": "3 of 3 pods serve."}
    broken = {**ready, "status": "False", "reason": "CrashLoopBackOff", "message": "engine ended."}
    degraded = {**broken, "type": "Degraded", "status": "True"}
    quiet = {"type": "Paused", "status": "False", "reason": "NotPaused", "message": ""}
    before = {"Ready": ready}
    assert transitions(before, [again, quiet]) == []
    assert [note.reason for note in transitions({}, [ready, quiet])] == ["Serving"]
    assert transitions(before, [broken, degraded]) == [Note("Warning", "CrashLoopBackOff", "Serve", "engine ended.")]
