"""Visits against the fake API server: what is written, and above all what is not."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from tests.unit.controller.fakes.kube import CrashError, failing, kinds_written
from tests.unit.controller.fakes.world import KEY, SPEC, World

from trimtab.controller.children import NameTakenError
from trimtab.controller.decided import Decided
from trimtab.controller.kube import ApiFailure
from trimtab.controller.objects import (
    AUTOSCALER,
    CONFIG_MAP,
    DEPLOYMENT,
    LLM_DEPLOYMENT,
    POD,
    SERVICE,
    Key,
    Ref,
)
from trimtab.resources.sidecar_config import LiveSettings

DEPLOYMENT_REF = Ref(DEPLOYMENT, KEY.namespace, KEY.name)
RESOURCE_REF = Ref(LLM_DEPLOYMENT, KEY.namespace, KEY.name)
MAP_REF = Ref(CONFIG_MAP, KEY.namespace, "chat-sidecar")


async def _converged(world: World) -> None:
    world.create()
    await world.visit()
    world.run_pods(2)
    await world.visit()


def _writes(world: World) -> list[tuple[str, str]]:
    return [call for call in kinds_written(world.kube.writes) if call[1] != "Event"]


async def test_a_new_resource_becomes_its_children_each_written_once_and_owned_by_it() -> None:
    world = World()
    created = world.create()
    await world.visit()
    assert _writes(world) == [
        ("apply", "ConfigMap"),
        ("apply", "Service"),
        ("apply", "Deployment"),
        ("apply_status", "LLMDeployment"),
    ]
    for ref in (DEPLOYMENT_REF, MAP_REF, Ref(SERVICE, "team", "chat")):
        owners = world.kube.objects[ref]["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == [created["metadata"]["uid"]]
    assert world.deployment()["spec"]["replicas"] == 2
    assert "finalizers" not in world.kube.objects[RESOURCE_REF]["metadata"]


async def test_nothing_is_written_when_nothing_changed_not_even_after_a_restart() -> None:
    world = World()
    await _converged(world)
    assert world.condition("Ready")["status"] == "True"
    world.kube.calls.clear()
    await world.visit()
    world.start()
    await world.visit()
    await world.visit()
    assert world.kube.calls == []


async def test_visits_settle_without_watches_because_own_writes_are_read_back() -> None:
    world = World()
    world.create()
    world.deaf = True
    await world.visit()
    written = len(world.kube.writes)
    await world.visit()
    assert len(world.kube.writes) == written


@pytest.mark.parametrize(
    ("ref", "path", "value"),
    [
        pytest.param(DEPLOYMENT_REF, ("spec", "replicas"), 9, id="replicas of the Deployment"),
        pytest.param(DEPLOYMENT_REF, ("metadata", "labels", "trimtab.dev/deployment"), "chat", id="nothing at all"),
        pytest.param(
            DEPLOYMENT_REF, ("spec", "template", "spec", "containers", 0, "image"), "evil:1", id="image of the engine"
        ),
        pytest.param(MAP_REF, ("data", "live.json"), "{}", id="live settings"),
        pytest.param(DEPLOYMENT_REF, ("metadata", "annotations", "trimtab.dev/decided"), "x", id="recorded decisions"),
    ],
)
async def test_what_is_edited_by_hand_is_put_right_and_only_that_child_is_written(
    ref: Ref, path: tuple[str | int, ...], value: Any
) -> None:
    world = World()
    await _converged(world)
    before = json.dumps({k: v for k, v in world.kube.objects[ref].items() if k != "metadata"}, sort_keys=True)

    def edit(item: Any) -> None:
        for step in path[:-1]:
            item = item[step]
        item[path[-1]] = value

    world.kube.edit(ref, edit)
    world.kube.calls.clear()
    await world.visit()
    after = json.dumps({k: v for k, v in world.kube.objects[ref].items() if k != "metadata"}, sort_keys=True)
    assert after == before
    assert {call.ref for call in world.kube.writes if call.verb == "apply"} <= {ref}
    annotation = world.deployment()["metadata"]["annotations"]["trimtab.dev/decided"]
    assert Decided.from_annotation(annotation).choice is not None


async def test_a_deleted_child_comes_back() -> None:
    world = World()
    await _converged(world)
    world.kube.remove(Ref(SERVICE, "team", "chat"))
    world.kube.calls.clear()
    await world.visit()
    assert _writes(world) == [("apply", "Service")]


async def test_fields_and_labels_of_others_stay() -> None:
    world = World()
    await _converged(world)
    world.kube.edit(DEPLOYMENT_REF, lambda item: item["metadata"]["labels"].update(team="blue"))
    world.edit_spec(model={"id": "org/other"})
    await world.visit()
    assert world.deployment()["metadata"]["labels"]["team"] == "blue"
    assert world.deployment()["spec"]["template"]["spec"]["containers"][0]["args"] == ["--model-id", "org/other"]


async def test_a_child_that_is_no_longer_wanted_is_deleted() -> None:
    world = World()
    await _converged(world)
    world.edit_spec(cache={"exact": {"enabled": False}})
    await world.visit()
    assert Ref(SERVICE, "team", "chat") not in world.kube.objects


async def test_an_object_of_somebody_else_with_the_name_of_a_child_is_left_alone() -> None:
    world = World()
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "team", "name": "chat"},
        "spec": {"ports": [{"port": 443}]},
    }
    world.kube.seed(theirs)
    world.create()
    with pytest.raises(NameTakenError):
        await world.visit()
    assert world.kube.stored(SERVICE, "team", "chat")["spec"] == theirs["spec"]
    assert (world.condition("Ready")["status"], world.condition("Ready")["reason"]) == ("False", "NameTaken")
    assert world.condition("Stalled")["status"] == "True"


async def test_a_namesake_of_a_deleted_resource_takes_over_children_but_not_decisions() -> None:
    world = World()
    await _converged(world)
    world.book.records[KEY].decided = Decided(replicas=5)
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 5
    world.kube.remove(RESOURCE_REF)
    successor = world.create()
    world.start()
    await world.visit()
    owners = world.deployment()["metadata"]["ownerReferences"]
    assert [owner["uid"] for owner in owners] == [successor["metadata"]["uid"]]
    assert world.deployment()["spec"]["replicas"] == 2


async def test_a_resource_that_is_being_deleted_is_not_touched() -> None:
    world = World()
    world.create()
    world.kube.edit(RESOURCE_REF, lambda item: item["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))
    await world.visit()
    assert world.kube.calls == []


async def test_a_resource_that_is_gone_is_forgotten() -> None:
    world = World()
    await _converged(world)
    world.kube.remove(RESOURCE_REF)
    world.kube.calls.clear()
    await world.visit()
    assert world.kube.calls == []
    assert world.book.records == {}


async def test_decisions_survive_a_restart_and_even_the_loss_of_the_deployment() -> None:
    world = World()
    await _converged(world)
    world.book.records[KEY].decided = Decided(replicas=4, live=LiveSettings(max_in_flight=17))
    await world.visit()
    world.start()
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 4
    world.kube.remove(DEPLOYMENT_REF)
    world.start()
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 4
    assert json.loads(world.kube.objects[MAP_REF]["data"]["live.json"])["maxInFlight"] == 17


async def test_decisions_stay_within_the_bounds_of_the_spec() -> None:
    world = World()
    await _converged(world)
    world.book.records[KEY].decided = Decided(replicas=50, live=LiveSettings(max_in_flight=500))
    world.edit_spec(tuning={"limits": {"maxInFlight": 64}})
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 5
    assert world.status()["liveLimit"] == 64
    world.edit_spec(replicas=1)
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 1


async def test_a_choice_once_made_is_offered_to_the_planner_again_after_a_restart() -> None:
    world = World()
    await _converged(world)
    world.start()
    await world.visit()
    assert world.planner.asked[-1] is not None
    assert world.planner.asked[-1].gpu == "A100-80GB"


async def test_an_invalid_spec_is_reported_and_what_runs_keeps_running() -> None:
    world = World()
    await _converged(world)
    before = world.deployment()
    world.edit_spec(scaling={"minReplicas": 7, "maxReplicas": 5})
    world.kube.calls.clear()
    await world.visit()
    assert _writes(world) == [("apply_status", "LLMDeployment")]
    assert world.deployment() == before
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"], ready["observedGeneration"]) == ("False", "InvalidSpec", 2)
    assert "minReplicas 7 must not exceed maxReplicas 5" in ready["message"]
    assert "2 pods of the previous configuration keep serving" in ready["message"]
    assert world.condition("Available")["status"] == "True"
    assert world.status()["plan"]["quantization"] == "fp8"


async def test_no_feasible_plan_is_reported_and_what_runs_keeps_running() -> None:
    world = World()
    await _converged(world)
    before = world.deployment()
    world.planner.problem = "nothing fits; nearest: int4 on two A100"
    world.edit_spec(model={"id": "org/huge"})
    await world.visit()
    assert world.deployment() == before
    assert world.condition("Planned")["reason"] == "NoFeasiblePlan"
    assert "nearest: int4" in world.condition("Stalled")["message"]


async def test_a_paused_resource_is_judged_and_not_changed() -> None:
    world = World()
    await _converged(world)
    world.kube.edit(RESOURCE_REF, lambda item: item["metadata"].update(annotations={"trimtab.dev/paused": "true"}))
    world.edit_spec(model={"id": "org/other"})
    world.kube.remove(Ref(SERVICE, "team", "chat"))
    world.kube.calls.clear()
    await world.visit()
    assert _writes(world) == [("apply_status", "LLMDeployment")]
    assert world.condition("Paused")["status"] == "True"
    assert world.condition("TuningActive")["reason"] == "Paused"
    world.kube.edit(RESOURCE_REF, lambda item: item["metadata"].update(annotations={}))
    await world.visit()
    assert Ref(SERVICE, "team", "chat") in world.kube.objects


async def test_a_new_limit_reaches_the_pods_once_and_without_a_new_template() -> None:
    world = World()
    await _converged(world)
    template = world.deployment()["spec"]["template"]
    world.book.records[KEY].decided = Decided(live=LiveSettings(max_in_flight=8))
    world.kube.calls.clear()
    await world.visit()
    assert [call for call in _writes(world) if call[1] == "Pod"] == [("patch", "Pod")] * 2
    revisions = {
        world.kube.objects[Ref(POD, "team", f"chat-{index}")]["metadata"]["annotations"]["trimtab.dev/live-revision"]
        for index in range(2)
    }
    assert len(revisions) == 1
    assert world.deployment()["spec"]["template"] == template
    world.kube.calls.clear()
    await world.visit()
    assert world.kube.calls == []


async def test_an_autoscaler_of_somebody_else_is_not_fought() -> None:
    world = World()
    await _converged(world)

    def scale(item: Any) -> None:
        item["spec"]["replicas"] = 4
        entry = {"manager": "kcm", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        item["metadata"]["managedFields"] = [entry]

    target = {"kind": "Deployment", "name": "chat"}
    world.kube.seed(
        {
            "apiVersion": AUTOSCALER.api_version,
            "kind": AUTOSCALER.name,
            "metadata": {"namespace": "team", "name": "theirs"},
            "spec": {"scaleTargetRef": target},
        }
    )
    # The other autoscaler owns the field before ours gives it up.
    world.kube.applied[DEPLOYMENT_REF, "trimtab", ""]["spec"].pop("replicas")
    world.kube.edit(DEPLOYMENT_REF, scale)
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 4
    assert world.condition("TuningActive")["reason"] == "ForeignAutoscaler"
    world.kube.calls.clear()
    await world.visit()
    assert world.kube.calls == []


async def test_kubectl_scale_of_the_deployment_is_drift_and_put_right() -> None:
    world = World()
    await _converged(world)

    def scale(item: Any) -> None:
        item["spec"]["replicas"] = 4
        entry = {"manager": "kubectl", "subresource": "scale", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        item["metadata"]["managedFields"] = [entry]

    world.kube.edit(DEPLOYMENT_REF, scale)
    await world.visit()
    assert world.deployment()["spec"]["replicas"] == 2


@pytest.mark.parametrize("code", [403, 409, 422, 429, 500, 0])
async def test_a_failed_write_is_reported_raised_for_the_back_off_and_made_good_later(code: int) -> None:
    world = World()
    world.create()
    broken = failing(code, retry_after=7 if code == 429 else None)
    world.kube.fault = lambda call: broken if call.ref.kind == DEPLOYMENT and call.verb == "apply" else None
    with pytest.raises(ApiFailure) as raised:
        await world.visit()
    assert raised.value is broken
    assert world.condition("Ready")["status"] == "False"
    assert world.condition("Degraded")["status"] == "True"
    assert world.condition("Stalled")["status"] == ("True" if code in (403, 409, 422) else "False")
    world.kube.fault = lambda _call: None
    await world.visit()
    world.run_pods(2)
    await world.visit()
    assert world.condition("Ready")["status"] == "True"


async def test_a_failed_status_write_is_tried_again() -> None:
    world = World()
    world.create()
    world.kube.fault = lambda call: failing(500) if call.verb == "apply_status" else None
    with pytest.raises(ApiFailure):
        await world.visit()
    world.kube.fault = lambda _call: None
    await world.visit()
    assert world.condition("Planned")["status"] == "True"


async def test_events_tell_news_once_and_a_failing_events_api_hurts_nobody() -> None:
    world = World()
    await _converged(world)
    told = [item for ref, item in world.kube.objects.items() if ref.kind.name == "Event"]
    assert "Serving" in {event["reason"] for event in told}
    assert all(event["regarding"]["uid"] == world.book.records[KEY].uid for event in told)
    world.kube.fault = lambda call: failing(500) if call.ref.kind.name == "Event" else None
    world.add_pod("chat-0", ready=False, containerStatuses=[_crashing()])
    await world.visit()
    assert world.condition("Ready")["reason"] == "CrashLoopBackOff"


def _crashing() -> dict[str, Any]:
    return {
        "name": "engine",
        "ready": False,
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 1}},
    }


async def _story(world: World) -> None:
    """Create, run, decide, edit, break: what a resource lives through; may be cut off anywhere."""
    if RESOURCE_REF not in world.kube.objects:
        world.create()
    await world.visit()
    world.run_pods(2)
    await world.visit()
    world.edit_spec(model={"id": "org/other"}, cache={"exact": {"enabled": False}})
    await world.visit()
    world.run_pods(2)
    await world.visit()


async def test_a_crash_after_any_write_leads_to_the_same_final_state() -> None:
    undisturbed = World()
    await _story(undisturbed)
    total = len(undisturbed.kube.writes)
    assert total > 8
    for k in range(1, total + 1):
        world = World()
        world.kube.crash_after = k
        crashed = False
        try:
            await _story(world)
        except CrashError:
            crashed = True
            world.start()
            await _story(world)
        await world.visit()
        assert crashed or world.kube.crash_after is not None
        assert world.final_state() == undisturbed.final_state(), f"crash after write {k}"
        world.kube.calls.clear()
        await world.visit()
        assert world.kube.calls == [], f"crash after write {k}"


async def test_random_faults_change_the_way_and_not_the_end() -> None:
    undisturbed = World()
    await _story(undisturbed)
    for seed in range(20):
        world = World()
        codes = itertools.cycle([409, 0, 429, 0, 0, 503, 0, 500, 0, 0, 0])
        for _ in range(seed):
            next(codes)
        budget = iter(range(40))
        world.kube.fault = lambda _call, c=codes, b=budget: _maybe(next(c)) if next(b, None) is not None else None  # type: ignore[misc]
        for _ in range(60):
            try:
                await _story(world)
                break
            except ApiFailure:
                continue
        await world.visit()
        assert world.final_state() == undisturbed.final_state(), f"seed {seed}"


def _maybe(code: int) -> ApiFailure | None:
    return failing(code) if code else None


async def test_many_resources_are_independent() -> None:
    world = World()
    for index in range(30):
        world.create(SPEC, name=f"chat-{index}")
    await asyncio.gather(*(world.visit(Key("team", f"chat-{index}")) for index in range(30)))
    assert len([ref for ref in world.kube.objects if ref.kind == DEPLOYMENT]) == 30
