"""A long life in random order: edits, faults, crashes, lost and late events; the promises hold after every step."""

import asyncio
import contextlib
import copy
import random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.unit.controller.fakes.kube import CrashError, WatchEvent, failing
from tests.unit.controller.fakes.world import KEY, World

from trimtab.api.errors import InvalidSpecError
from trimtab.api.resource import parse_spec
from trimtab.controller.children import NameTakenError
from trimtab.controller.decided import Decided, clamp_replicas
from trimtab.controller.kube import ApiFailure
from trimtab.controller.objects import CONFIG_MAP, DEPLOYMENT, LLM_DEPLOYMENT, POD, SERVICE, Manifest, Ref

RESOURCE = Ref(LLM_DEPLOYMENT, KEY.namespace, KEY.name)
CHILDREN = {
    "deployment": Ref(DEPLOYMENT, KEY.namespace, "chat"),
    "service": Ref(SERVICE, KEY.namespace, "chat"),
    "config": Ref(CONFIG_MAP, KEY.namespace, "chat-sidecar"),
}
CRASHING = {
    "name": "engine",
    "ready": False,
    "restartCount": 3,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 1}},
}


class OperatorLife(RuleBasedStateMachine):
    """Rules are what users, nodes and the network do; invariants are what the operator promises."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.create({"model": {"id": "org/a"}, "scaling": {"minReplicas": 1, "maxReplicas": 4}})
        self.spec: Manifest = copy.deepcopy(self.stored["spec"])
        self.templates: dict[str, Manifest] = {}
        self.fresh = False
        """The last visit succeeded and nothing happened since."""
        self.decided: set[int | None] = {None}
        """Replicas that may be recorded: more than one while a crash may have lost the last decision."""
        self.past: list[WatchEvent] = []
        self.world.kube.listeners.append(self.past.append)

    @property
    def stored(self) -> Manifest:
        return self.world.kube.objects[RESOURCE]

    @property
    def valid(self) -> bool:
        try:
            parse_spec(self.spec)
        except InvalidSpecError:
            return False
        return True

    @property
    def paused(self) -> bool:
        return bool((self.stored["metadata"].get("annotations") or {}).get("trimtab.dev/paused"))

    def recallable(self) -> set[int | None]:
        """What a new process may find recorded, besides the last decision: the one before, or the mirror in status."""
        status = self.stored.get("status") or {}
        annotations = self.world.kube.objects.get(CHILDREN["deployment"], {"metadata": {}})["metadata"]
        recorded = (annotations.get("annotations") or {}).get("trimtab.dev/decided")
        found = {Decided.from_annotation(recorded).replicas} if recorded else set()
        return {None, status.get("desiredReplicas"), *found}

    def visit(self) -> None:
        world = self.world
        world.kube.crash_after = None
        world.kube.fault = lambda _call: None
        seen = not world.deaf and not world.missed
        applied = len([call for call in world.kube.calls if call.verb == "apply"])
        try:
            asyncio.run(world.visit())
        except NameTakenError:
            seen = False
        self.fresh = seen
        if seen and self.paused:
            assert len([call for call in world.kube.calls if call.verb == "apply"]) == applied
        if seen and KEY in world.book.records:
            recorded = world.book.records[KEY].decided.replicas
            assert recorded in self.decided
            if self.valid and not self.paused:
                self.decided = {recorded}

    @rule()
    def visited(self) -> None:
        self.visit()

    @rule(writes=st.integers(1, 6))
    def crashes_after_some_writes(self, writes: int) -> None:
        self.world.kube.crash_after = writes
        with contextlib.suppress(CrashError, ApiFailure, NameTakenError):
            asyncio.run(self.world.visit())
        self.world.kube.crash_after = None
        self.world.missed.clear()
        self.world.deaf = False
        self.world.start()
        self.fresh = False
        self.decided |= self.recallable()

    @rule(code=st.sampled_from([403, 409, 422, 429, 500, 0]), nth=st.integers(0, 5))
    def a_request_fails(self, code: int, nth: int) -> None:
        count = iter(range(100))
        self.world.kube.fault = lambda _call: failing(code) if next(count) == nth else None
        with contextlib.suppress(ApiFailure, NameTakenError):
            asyncio.run(self.world.visit())
        self.world.kube.fault = lambda _call: None
        self.fresh = False

    @rule()
    def restarts(self) -> None:
        self.world.missed.clear()
        self.world.deaf = False
        self.world.start()
        self.fresh = False
        self.decided |= self.recallable()

    @rule(model=st.sampled_from(["org/a", "org/b"]), low=st.integers(1, 6), high=st.integers(1, 6))
    def user_edits_the_spec(self, model: str, low: int, high: int) -> None:
        # Bounds the wrong way round are invalid: that must hurt nobody.
        self.spec = {"model": {"id": model}, "scaling": {"minReplicas": low, "maxReplicas": high}}
        self.world.kube.edit(RESOURCE, lambda item: item.update(spec=copy.deepcopy(self.spec)))
        self.fresh = False

    @rule(on=st.booleans())
    def user_pauses(self, on: bool) -> None:
        annotations = {"trimtab.dev/paused": "true"} if on else {}
        self.world.kube.edit(RESOURCE, lambda item: item["metadata"].update(annotations=annotations))
        self.fresh = False

    @rule(replicas=st.integers(0, 9))
    def user_scales_the_deployment_by_hand(self, replicas: int) -> None:
        self._edit("deployment", lambda item: item["spec"].update(replicas=replicas))

    @rule()
    def user_edits_the_image_by_hand(self) -> None:
        def change(item: Manifest) -> None:
            item["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"

        self._edit("deployment", change)

    @rule(child=st.sampled_from(sorted(CHILDREN)))
    def user_deletes_a_child(self, child: str) -> None:
        if CHILDREN[child] in self.world.kube.objects:
            self.world.kube.remove(CHILDREN[child])
        self.fresh = False

    @rule()
    def user_deletes_and_creates_the_resource(self) -> None:
        self.world.kube.remove(RESOURCE)
        self.world.create(copy.deepcopy(self.spec))
        self.fresh = False
        self.decided = {None}

    @rule(states=st.lists(st.sampled_from(["ready", "starting", "crashing"]), max_size=3))
    def pods_change(self, states: list[str]) -> None:
        for ref in [ref for ref in self.world.kube.objects if ref.kind == POD]:
            self.world.kube.remove(ref)
        for index, state in enumerate(states):
            extra: dict[str, Any] = {"containerStatuses": [CRASHING]} if state == "crashing" else {}
            self.world.add_pod(f"chat-{index}", ready=state == "ready", **extra)
        numbers = {"replicas": len(states), "updatedReplicas": len(states)}

        def settle(item: Manifest) -> None:
            item["status"] = {"observedGeneration": item["metadata"]["generation"], **numbers}

        self._edit("deployment", settle)
        self.fresh = False

    @rule(replicas=st.integers(0, 9), limit=st.integers(1, 200))
    @precondition(lambda self: KEY in self.world.book.records)
    def tuner_decides(self, replicas: int, limit: int) -> None:
        record = self.world.book.records[KEY]
        live = type(record.decided.live)(max_in_flight=limit)
        record.decided = type(record.decided)(replicas, live, record.decided.choice)
        if record.uid == self.stored["metadata"]["uid"]:
            self.decided = {replicas}
        self.fresh = False

    @rule(index=st.integers(0, 500))
    @precondition(lambda self: self.past and not self.world.deaf)
    def a_late_event_arrives_again(self, index: int) -> None:
        # It says nothing new: what was true stays true, so `fresh` does.
        self.world.hear(self.past[index % len(self.past)])

    @rule()
    def watches_fall_silent(self) -> None:
        self.world.deaf = True

    @rule(seed=st.integers(0, 99))
    @precondition(lambda self: self.world.deaf)
    def watches_come_back_with_a_jumble(self, seed: int) -> None:
        self.world.deaf = False
        events = self.world.missed
        self.world.missed = []
        random.Random(seed).shuffle(events)
        for event in events[: len(events) // 2]:
            self.world.hear(event)
        self.world.relist()
        self.fresh = False

    @invariant()
    def the_operator_never_writes_the_spec(self) -> None:
        assert self.stored["spec"] == self.spec

    @invariant()
    def one_configuration_has_one_template(self) -> None:
        """Pods restart only when what they should run changes."""
        for call in self.world.kube.calls:
            if call.verb == "apply" and call.ref.kind == DEPLOYMENT and call.body is not None:
                template = call.body["spec"]["template"]
                model = template["spec"]["containers"][0]["args"][1]
                assert self.templates.setdefault(model, template) == template
        self.world.kube.calls.clear()

    @invariant()
    def a_status_that_was_just_written_tells_the_truth(self) -> None:
        if not self.fresh:
            return
        pods = [item for ref, item in self.world.kube.objects.items() if ref.kind == POD]
        ready = [pod for pod in pods if pod["status"]["conditions"][0]["status"] == "True"]
        crashing = [pod for pod in pods if pod["status"].get("containerStatuses")]
        status = self.stored["status"]
        says = {item["type"]: item["status"] for item in status["conditions"]}
        if says["Ready"] == "True":
            assert ready
            assert not crashing
            assert self.valid
        assert (says["Available"] == "True") == bool(ready)
        assert says["Paused"] == str(self.paused)
        assert status["observedGeneration"] == self.stored["metadata"]["generation"]

    @invariant()
    def after_a_good_visit_the_children_are_as_wanted(self) -> None:
        if not self.fresh or not self.valid or self.paused:
            return
        deployment = self.world.deployment()
        record = self.world.book.records[KEY]
        assert deployment["spec"]["replicas"] == clamp_replicas(parse_spec(self.spec), record.decided.replicas)
        assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "tgi:3.3.7"
        for ref in CHILDREN.values():
            owners = self.world.kube.objects[ref]["metadata"]["ownerReferences"]
            assert [owner["uid"] for owner in owners] == [self.stored["metadata"]["uid"]]

    def teardown(self) -> None:
        """When the trouble ends, everything comes right within two visits and then nothing is written any more."""
        self.user_pauses(False)
        self.user_edits_the_spec("org/a", 1, 3)
        self.world.deaf = False
        self.world.missed.clear()
        self.world.relist()
        self.visit()
        self.visit()
        self.after_a_good_visit_the_children_are_as_wanted()
        self.a_status_that_was_just_written_tells_the_truth()
        self.world.kube.calls.clear()
        self.visit()
        self.world.start()
        self.visit()
        assert self.world.kube.calls == []

    def _edit(self, child: str, change: Any) -> None:
        if CHILDREN[child] in self.world.kube.objects:
            self.world.kube.edit(CHILDREN[child], change)
        self.fresh = False


TestOperatorLife = OperatorLife.TestCase
TestOperatorLife.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
