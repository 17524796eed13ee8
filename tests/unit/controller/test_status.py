"""Conditions: never Ready while pods crash or none runs, and readable by kstatus."""

import itertools
from typing import Any

import pytest

from trimtab.controller.pods import PodsView, view_pods
from trimtab.controller.reasons import ConditionType, Reason
from trimtab.controller.status import CHECKS, Facts, Failure, conditions_of, judge
from trimtab.engines.tgi import TgiEngine

NOW = "2026-01-01T00:00:00Z"
LATER = "2026-01-01T01:00:00Z"


def _pod(name: str, *, ready: bool = True, phase: str = "Running", **status: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *status.pop("conditions", ())]
    return {"metadata": {"name": name}, "status": {"phase": phase, "conditions": conditions, **status}}


def _container(state: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "engine", "ready": False, "restartCount": 2, "state": state, **fields}


CRASHING = _pod(
    "bad",
    ready=False,
    containerStatuses=[
        _container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": {"exitCode": 1}})
    ],
)
OUT_OF_MEMORY = _pod(
    "bad",
    ready=False,
    containerStatuses=[_container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})],
)
NO_IMAGE = _pod(
    "bad",
    ready=False,
    phase="Pending",
    containerStatuses=[_container({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})],
)
NO_SECRET = _pod(
    "bad",
    ready=False,
    phase="Pending",
    containerStatuses=[_container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf"'}})],
)
NO_NODE = _pod(
    "bad",
    ready=False,
    phase="Pending",
    conditions=[
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        }
    ],
)
SIDECAR_CRASHING = _pod(
    "bad",
    ready=False,
    initContainerStatuses=[
        {**_container({"waiting": {"reason": "CrashLoopBackOff"}}), "name": "sidecar", "lastState": {"terminated": {}}}
    ],
)
EVICTED = _pod("bad", ready=False, phase="Failed", message="the node was low on memory")
STARTING = _pod("new", ready=False, containerStatuses=[_container({"running": {}})])


def _deployment(replicas: int, updated: int | None = None, **status: Any) -> dict[str, Any]:
    updated = replicas if updated is None else updated
    numbers = {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated}
    return {"metadata": {"generation": 1}, "status": {**numbers, **status}}


def _facts(*pods: dict[str, Any], desired: int = 2, **fields: Any) -> Facts:
    given: dict[str, Any] = {
        "generation": 3,
        "pods": view_pods(pods),
        "deployment": _deployment(len(pods)),
        "desired_replicas": desired,
        "min_replicas": 1,
        "plan_summary": "fp8",
    }
    return Facts(**{**given, **fields})


GOOD = (_pod("a"), _pod("b"))


@pytest.mark.parametrize(
    ("facts", "ready", "reason"),
    [
        pytest.param(_facts(*GOOD), "True", Reason.SERVING, id="serves"),
        pytest.param(_facts(_pod("a"), STARTING), "True", Reason.SERVING, id="serves while another one is added"),
        pytest.param(_facts(_pod("a"), CRASHING), "False", Reason.CRASH_LOOP, id="one of two crashes"),
        pytest.param(_facts(_pod("a"), OUT_OF_MEMORY), "False", Reason.OUT_OF_MEMORY, id="one was killed for memory"),
        pytest.param(_facts(SIDECAR_CRASHING), "False", Reason.CRASH_LOOP, id="the sidecar crashes"),
        pytest.param(_facts(NO_IMAGE), "False", Reason.IMAGE_PULL, id="no image"),
        pytest.param(_facts(NO_SECRET), "False", Reason.CONTAINER_CONFIG, id="no Secret"),
        pytest.param(_facts(NO_NODE), "False", Reason.UNSCHEDULABLE, id="no node"),
        pytest.param(_facts(_pod("a"), NO_NODE), "True", Reason.SERVING, id="no node for one more"),
        pytest.param(_facts(_pod("a"), NO_NODE, min_replicas=2), "False", Reason.UNSCHEDULABLE, id="too few"),
        pytest.param(_facts(EVICTED), "False", Reason.EVICTED, id="evicted"),
        pytest.param(_facts(STARTING), "False", Reason.STARTING, id="loads the model"),
        pytest.param(_facts(), "False", Reason.CREATING, id="no pod yet"),
        pytest.param(_facts(deployment=None), "False", Reason.CREATING, id="no Deployment yet"),
        pytest.param(_facts(desired=0), "False", Reason.SCALED_TO_ZERO, id="scaled to zero"),
        pytest.param(_facts(*GOOD, invalid="x is wrong"), "False", Reason.INVALID_SPEC, id="invalid"),
        pytest.param(_facts(*GOOD, infeasible="too large"), "False", Reason.NO_FEASIBLE_PLAN, id="no plan"),
        pytest.param(_facts(*GOOD, failure=Failure(Reason.FORBIDDEN, "no")), "False", Reason.FORBIDDEN, id="forbidden"),
        pytest.param(_facts(*GOOD, deployment=_deployment(2, 1)), "False", Reason.ROLLING_OUT, id="rolling out"),
        pytest.param(
            _facts(
                _pod("a"),
                NO_NODE,
                deployment=_deployment(
                    2,
                    conditions=[{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}],
                ),
            ),
            "False",
            Reason.ROLLOUT_STUCK,
            id="the rollout is stuck",
        ),
        pytest.param(
            _facts(
                deployment=_deployment(
                    0, conditions=[{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]
                )
            ),
            "False",
            Reason.PODS_NOT_CREATED,
            id="quota",
        ),
    ],
)
def test_ready(facts: Facts, ready: str, reason: Reason) -> None:
    found = judge(facts)[ConditionType.READY]
    assert (found.status, found.reason) == (ready, reason)
    assert found.message.endswith(".")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_never_ready_while_a_pod_crashes_or_none_is_ready(count: int) -> None:
    kinds = [CRASHING, OUT_OF_MEMORY, NO_IMAGE, NO_SECRET, NO_NODE, SIDECAR_CRASHING, EVICTED, STARTING]
    for pods in itertools.combinations(kinds, count):
        for updated in (0, count):
            facts = _facts(*pods, deployment=_deployment(count, updated))
            assert judge(facts)[ConditionType.READY].status == "False"
            assert judge(facts)[ConditionType.AVAILABLE].status == "False"


def test_a_pod_that_is_ending_does_not_count() -> None:
    ending = _pod("old")
    ending["metadata"]["deletionTimestamp"] = NOW
    assert view_pods([ending, _pod("a")]) == PodsView(1, 1, ())


def test_a_container_that_recovered_is_no_problem() -> None:
    state = {"name": "engine", "ready": True, "restartCount": 1, "state": {"running": {}}}
    past = {"lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    assert view_pods([_pod("a", containerStatuses=[{**state, **past}])]).problems == ()


def test_the_engine_s_own_last_words_explain_a_crash() -> None:
    failures = TgiEngine().failures
    log = "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    ended = {"terminated": {"exitCode": 1, "message": log}}
    view = view_pods([_pod("a", ready=False, containerStatuses=[_container(ended)])], failures)
    assert [problem.reason for problem in view.problems] == [Reason.ENGINE_FAILED]
    known = next(failure for failure in failures if failure.reason in view.problems[0].message)
    assert known.advice in view.problems[0].message


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("3 Insufficient nvidia.com/gpu", "add GPU nodes"),
        ("3 node(s) had untolerated taint {gpu: x}", "spec.hardware.tolerations"),
        ("3 node(s) didn't match Pod's node affinity/selector", "nodeSelector"),
        ("persistentvolumeclaim not found", "spec.model.cache"),
        ("3 Insufficient memory", "add nodes"),
    ],
)
def test_an_unschedulable_pod_comes_with_what_to_do(message: str, advice: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    (problem,) = view_pods([_pod("a", ready=False, phase="Pending", conditions=[condition])]).problems
    assert message in problem.message
    assert advice in problem.message


def test_the_worst_problem_is_told_and_the_others_are_counted() -> None:
    facts = _facts(_pod("a"), {**NO_NODE, "metadata": {"name": "c"}}, CRASHING, desired=3)
    found = judge(facts)[ConditionType.DEGRADED]
    assert (found.status, found.reason) == ("True", Reason.CRASH_LOOP)
    assert "1 more pods have problems. 1 of 3 pods serve." in found.message


@pytest.mark.parametrize(
    ("facts", "stalled"),
    [
        pytest.param(_facts(*GOOD), "False", id="serves"),
        pytest.param(_facts(NO_NODE), "False", id="a node may be on its way"),
        pytest.param(_facts(STARTING), "False", id="starting"),
        pytest.param(_facts(CRASHING), "True", id="crashes"),
        pytest.param(_facts(NO_IMAGE), "True", id="no image"),
        pytest.param(_facts(*GOOD, invalid="x"), "True", id="invalid"),
        pytest.param(_facts(*GOOD, infeasible="x"), "True", id="no plan"),
        pytest.param(_facts(*GOOD, infeasible="x", planning=True), "False", id="the model is being looked up"),
        pytest.param(_facts(*GOOD, failure=Failure(Reason.API_UNAVAILABLE, "x")), "False", id="passing trouble"),
        pytest.param(_facts(*GOOD, failure=Failure(Reason.NAME_TAKEN, "x")), "True", id="name taken"),
    ],
)
def test_stalled_means_that_only_a_person_can_help(facts: Facts, stalled: str) -> None:
    assert judge(facts)[ConditionType.STALLED].status == stalled


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        pytest.param(_facts(*GOOD), "False", Reason.UP_TO_DATE, id="done"),
        pytest.param(_facts(_pod("a"), STARTING), "True", Reason.SCALING_UP, id="one more"),
        pytest.param(_facts(*GOOD, desired=1), "True", Reason.SCALING_DOWN, id="one less"),
        pytest.param(_facts(STARTING, desired=1), "True", Reason.STARTING, id="first one"),
        pytest.param(_facts(*GOOD, deployment=_deployment(2, 1)), "True", Reason.ROLLING_OUT, id="rolling out"),
        pytest.param(_facts(*GOOD, invalid="x"), "False", Reason.INVALID_SPEC, id="cannot"),
    ],
)
def test_progressing(facts: Facts, status: str, reason: Reason) -> None:
    found = judge(facts)[ConditionType.PROGRESSING]
    assert (found.status, found.reason) == (status, reason)


def _stored(facts: Facts, now: str = NOW) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in conditions_of(facts, now)}


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = _stored(_facts(*GOOD))
    again = _stored(_facts(_pod("a"), STARTING, previous=first), LATER)
    assert again["Ready"]["message"] != first["Ready"]["message"]
    assert again["Ready"]["lastTransitionTime"] == NOW
    assert again["Progressing"]["lastTransitionTime"] == LATER


def test_every_condition_names_the_generation_it_was_judged_on() -> None:
    stored = _stored(_facts(*GOOD))
    assert [kind.value for kind in ConditionType] == list(stored)
    assert {condition["observedGeneration"] for condition in stored.values()} == {3}
    assert set(CHECKS) == set(ConditionType)


def _lagging(**fields: Any) -> Facts:
    deployment = _deployment(2)
    deployment["metadata"]["generation"] = 2
    return _facts(*GOOD, deployment=deployment, **fields)


def test_a_new_spec_is_not_ready_before_the_deployment_controller_has_seen_it() -> None:
    before = _stored(_facts(*GOOD))
    fresh = _stored(_lagging(previous=before, previous_generation=2))
    assert (fresh["Ready"]["status"], fresh["Ready"]["reason"]) == ("False", Reason.ROLLING_OUT)
    still = _stored(_lagging(previous=fresh, previous_generation=3))
    assert still["Ready"] == fresh["Ready"]


def test_scaling_does_not_make_a_serving_deployment_unready_for_a_moment() -> None:
    before = _stored(_facts(*GOOD))
    after = _stored(_lagging(previous=before, previous_generation=3))
    assert after["Ready"] == before["Ready"]
