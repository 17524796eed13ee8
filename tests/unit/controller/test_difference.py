"""When an applied object still says what we want, and when it must be written again."""

from typing import Any

import pytest

from trimtab.controller.difference import difference, fingerprint, stamped

CONTAINER: dict[str, Any] = {
    "name": "engine",
    "image": "tgi:3.3.7",
    "args": ["--port", "8000"],
    "env": [{"name": "A", "value": "1"}],
    "ports": [{"containerPort": 8000, "name": "engine"}],
    "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1024Mi"}, "requests": {"cpu": "1000m"}},
    "securityContext": {"allowPrivilegeEscalation": False},
    "volumeMounts": [],
}


def _deployment(**container: Any) -> dict[str, Any]:
    return {"spec": {"replicas": 2, "template": {"spec": {"containers": [{**CONTAINER, **container}]}}}}


def _as_stored() -> dict[str, Any]:
    """As the API server gives it back: defaulted, normalised, empty lists dropped, a stranger's entries added."""
    stored = _deployment(
        env=[{"name": "OTHER", "value": "x"}, {"name": "A", "value": "1"}],
        ports=[{"containerPort": 8000, "name": "engine", "protocol": "TCP"}],
        resources={"limits": {"nvidia.com/gpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
        imagePullPolicy="IfNotPresent",
    )
    container = stored["spec"]["template"]["spec"]["containers"][0]
    del container["volumeMounts"]
    stored["spec"]["template"]["spec"]["containers"].insert(0, {"name": "injected", "image": "mesh:1"})
    stored["spec"]["progressDeadlineSeconds"] = 600
    return stored


def test_defaults_normalised_quantities_and_entries_of_others_are_no_difference() -> None:
    assert difference(_deployment(), _as_stored()) is None


@pytest.mark.parametrize(
    ("change", "path"),
    [
        pytest.param({"image": "tgi:3.3.8"}, "image", id="image"),
        pytest.param({"args": ["--port", "8000", "--quantize", "fp8"]}, "args", id="one more argument"),
        pytest.param({"args": ["--port", "8001"]}, "args.1", id="another argument"),
        pytest.param({"env": [{"name": "A", "value": "2"}]}, "env.A.value", id="value of a variable"),
        pytest.param({"env": [{"name": "B", "value": "1"}]}, "env.B", id="variable that is missing"),
        pytest.param({"resources": {"limits": {"memory": "2Gi"}}}, "resources.limits.memory", id="quantity"),
        pytest.param({"securityContext": {"allowPrivilegeEscalation": True}}, "Escalation", id="boolean"),
        pytest.param({"ports": [{"containerPort": 8001}]}, "ports.8001/TCP", id="port"),
    ],
)
def test_a_changed_field_is_found(change: dict[str, Any], path: str) -> None:
    found = difference(_deployment(**change), _as_stored())
    assert found is not None
    assert path in found


def test_a_number_is_not_a_boolean_and_a_missing_field_is_not_false() -> None:
    assert difference({"a": False}, {"a": 0}) == "a"
    assert difference({"enableServiceLinks": False}, {}) == "enableServiceLinks"


@pytest.mark.parametrize("empty", [{}, [], None])
def test_empty_values_may_be_dropped_by_the_server(empty: Any) -> None:
    assert difference({"a": empty}, {}) is None


def test_a_list_without_keys_must_be_the_same() -> None:
    assert difference({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "a"}, {"key": "b"}]}) == "tolerations"


def test_the_stamp_changes_with_what_is_applied_and_with_nothing_else() -> None:
    one = {"metadata": {"name": "a", "annotations": {"k": "v"}}, "spec": {"x": 1, "y": [1, 2]}}
    same = {"spec": {"y": [1, 2], "x": 1}, "metadata": {"annotations": {"k": "v"}, "name": "a"}}
    assert stamped(one) == stamped(same)
    assert fingerprint(stamped(one)) != fingerprint(stamped({**one, "spec": {"x": 1}}))
    assert stamped(one)["metadata"]["annotations"]["k"] == "v"
