"""Plans as the controller keeps them: once chosen they stay, whatever the nodes do."""

from collections.abc import Sequence
from typing import Any

import pytest

import trimtab.controller.planning as planning
from trimtab.api.resource import parse_spec
from trimtab.api.status import LLMDeploymentStatus, PlanStatus
from trimtab.catalog.catalogue import load_catalogue
from trimtab.controller.decided import Choice, Decided, asked_of, clamp_live, clamp_replicas, recall
from trimtab.controller.planning import CachedPlanner, gpus_of
from trimtab.plan.from_spec import NodeGpus
from trimtab.plan.types import Calibration
from trimtab.resources.sidecar_config import LiveSettings

SPEC = {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct"}, "slo": {"tpot": {"p95": "40ms"}}}
A100, L4, H100 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-L4", "NVIDIA-H100-80GB-HBM3"


def _node(product: str, count: int = 8, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": product.lower(), "labels": {"nvidia.com/gpu.product": product, **labels}},
        "status": {"allocatable": {"nvidia.com/gpu": str(count)}},
    }


def _choice(planner: CachedPlanner, nodes: Sequence[dict[str, Any]]) -> Choice:
    choice = planner.plan(parse_spec(SPEC), nodes, None, serving=False).choice
    assert choice is not None
    return choice


@pytest.fixture
def planner() -> CachedPlanner:
    return CachedPlanner(load_catalogue())


def test_gpus_are_read_from_the_labels_and_resources_of_nodes() -> None:
    nodes = [
        _node(A100),
        _node(L4, 1, pool="cheap"),
        {"metadata": {"name": "cpu"}, "status": {}},
        _node(H100, 0),
    ]
    assert gpus_of(nodes, {}) == {NodeGpus(A100, 8), NodeGpus(L4, 1)}
    assert gpus_of(nodes, {"pool": "cheap"}) == {NodeGpus(L4, 1)}


def test_a_plan_is_made_once_for_the_same_question(planner: CachedPlanner, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = planning.plan_spec
    monkeypatch.setattr(planning, "plan_spec", lambda *arguments: made.append(arguments) or real(*arguments))
    nodes = [_node(A100)]
    choice = _choice(planner, nodes)
    for scaling in ({}, {"maxReplicas": 4}):
        spec = parse_spec({**SPEC, "scaling": scaling, "replicas": 2, "tuning": {"mode": "Off"}})
        planner.plan(spec, nodes, choice, serving=True)
    assert len(made) == 1


def test_a_better_gpu_that_appears_moves_nothing_but_is_mentioned(planner: CachedPlanner) -> None:
    chosen = _choice(planner, [_node(H100)])
    both = [_node(H100), _node(L4, 8), _node(A100)]
    afresh = planner.plan(parse_spec(SPEC), both, None, serving=False)
    assert afresh.choice != chosen, "the test needs a node that would be preferred"
    kept = planner.plan(parse_spec(SPEC), both, chosen, serving=False)
    assert kept.choice == chosen
    assert "planned afresh it would be" in kept.report["reasons"][0]
    alone = planner.plan(parse_spec(SPEC), [_node(H100)], chosen, serving=False)
    assert kept.plan is not None
    assert alone.plan is not None
    assert kept.plan.launcher_args == alone.plan.launcher_args
    assert kept.plan.pool.product_label == alone.plan.pool.product_label


def test_nodes_that_vanish_leave_what_serves_as_it_is(planner: CachedPlanner) -> None:
    chosen = _choice(planner, [_node(A100)])
    for nodes in ([], [_node(L4)]):
        kept = planner.plan(parse_spec(SPEC), nodes, chosen, serving=True)
        assert (kept.problem, kept.choice) == ("", chosen)


def test_when_nothing_serves_and_the_gpus_are_gone_it_is_planned_anew(planner: CachedPlanner) -> None:
    chosen = _choice(planner, [_node(A100)])
    moved = planner.plan(parse_spec(SPEC), [_node(H100)], chosen, serving=False)
    assert moved.choice is not None
    assert moved.choice.gpu == H100
    assert "no node has such a GPU" in planner.plan(parse_spec(SPEC), [], chosen, serving=False).problem


def test_a_spec_that_asks_for_something_else_is_planned_anew(planner: CachedPlanner) -> None:
    nodes = [_node(A100)]
    chosen = _choice(planner, nodes)
    other = parse_spec({**SPEC, "quantization": "none"})
    assert asked_of(other) != chosen.asked
    planned = planner.plan(other, nodes, chosen, serving=True)
    assert planned.choice is not None
    assert planned.choice.quantization == "none"


def test_what_cannot_be_planned_says_field_value_and_what_is_allowed(planner: CachedPlanner) -> None:
    unknown = parse_spec({"model": {"id": "org/unknown"}})
    problem = planner.plan(unknown, [_node(A100)], None, serving=False).problem
    assert "spec.model.id" in problem
    assert "org/unknown" in problem
    vllm = parse_spec({**SPEC, "engine": {"type": "vllm"}})
    if "vllm" not in planning.ENGINES:
        assert "allowed: tgi" in planner.plan(vllm, [_node(A100)], None, serving=False).problem


def test_without_known_nodes_whatever_the_spec_allows_is_assumed() -> None:
    planner = CachedPlanner(load_catalogue(), nodes_known=False)
    spec = parse_spec({**SPEC, "hardware": {"gpuProducts": [H100]}})
    planned = planner.plan(spec, [], None, serving=False)
    assert planned.choice is not None
    again = planner.plan(spec, [], planned.choice, serving=True)
    assert again == planned


def test_the_report_is_a_valid_status(planner: CachedPlanner) -> None:
    report = planner.plan(parse_spec(SPEC), [_node(A100), _node(L4)], None, serving=False).report
    assert PlanStatus.model_validate(report).gpus_per_replica >= 1
    assert LLMDeploymentStatus.model_validate({"plan": report}).plan is not None
    assert report["rejected"]
    assert all(entry["reason"] for entry in report["rejected"])


def test_a_record_that_was_edited_beyond_recognition_is_replaced_by_status() -> None:
    resource = {"metadata": {"uid": "u"}, "status": {"desiredReplicas": 4, "liveLimit": 9}}
    metadata = {"ownerReferences": [{"kind": "LLMDeployment", "uid": "u"}]}
    for text in ("x", "[]", '{"replicas": "many"}', '{"choice": {"gpu": "A"}}', '{"live": {"other": 1}}'):
        deployment = {"metadata": {**metadata, "annotations": {"trimtab.dev/decided": text}}}
        assert recall(resource, deployment) == Decided(4, LiveSettings(max_in_flight=9))


def test_the_record_survives_a_round_trip() -> None:
    choice = Choice("q", "m", "g", 2, "fp8", "model")
    decided = Decided(3, LiveSettings(7, 8, 1.5), choice)
    assert Decided.from_annotation(decided.to_annotation()) == decided


@pytest.mark.parametrize(
    ("scaling", "decided", "replicas"),
    [
        ({}, None, 1),
        ({"minReplicas": 2, "maxReplicas": 4}, None, 2),
        ({"minReplicas": 2, "maxReplicas": 4}, 3, 3),
        ({"minReplicas": 2, "maxReplicas": 4}, 1, 2),
        ({"minReplicas": 2, "maxReplicas": 4}, 9, 4),
    ],
)
def test_replicas_are_clamped(scaling: dict[str, int], decided: int | None, replicas: int) -> None:
    assert clamp_replicas(parse_spec({**SPEC, "scaling": scaling}), decided) == replicas


def test_the_live_limit_starts_at_the_plan_and_stays_within_the_limits() -> None:
    spec = parse_spec({**SPEC, "tuning": {"limits": {"minInFlight": 4, "maxInFlight": 64}}})
    assert clamp_live(spec, LiveSettings(), 32).max_in_flight == 32
    assert clamp_live(spec, LiveSettings(), 500).max_in_flight == 64
    assert clamp_live(spec, LiveSettings(max_in_flight=1), 32).max_in_flight == 4


def test_a_measured_speed_replaces_the_estimate_in_a_new_choice_and_never_in_one_that_stands(
    planner: CachedPlanner,
) -> None:
    nodes = [_node(L4)]
    alone = {"quantization": "none", "hardware": {"gpusPerReplica": 1}, "slo": {"tpot": {"p95": "200ms"}}}
    spec = parse_spec({**SPEC, **alone})
    before = planner.plan(spec, nodes, None, serving=False)
    assert before.plan is not None and before.plan.estimate
    step = before.plan.step
    measured = Calibration(
        before.plan.calibration_key,
        const_ms=step.const_ms * 1.5,
        per_sequence_ms=step.per_sequence_ms,
        per_kv_token_ms=step.per_kv_token_ms,
        samples=40,
    )
    new = planner.plan(spec, nodes, None, serving=False, calibrations=(measured,))
    assert new.plan is not None and new.choice is not None
    assert new.choice.calibrations == (measured,)
    assert Choice.from_json(new.choice.to_json()) == new.choice
    assert not new.plan.estimate
    assert new.plan.step.const_ms == measured.const_ms
    assert new.plan.requests_per_second < before.plan.requests_per_second
    standing = planner.plan(spec, nodes, before.choice, serving=True, calibrations=(measured,))
    assert standing.plan == before.plan
    again = planner.plan(spec, nodes, new.choice, serving=True, calibrations=())
    assert again.plan == new.plan
