"""What Trimtab renders, on a real API server: accepted, settled after one write, admitted by pod security."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.api.resource import parse_spec
from trimtab.catalog.catalogue import load_catalogue
from trimtab.plan.planner import plan_spec
from trimtab.resources.identity import Owner
from trimtab.resources.render import render
from trimtab.resources.sidecar_config import LiveSettings

pytestmark = pytest.mark.api
ROOT = Path(__file__).parents[2]
MODEL = {"id": "meta-llama/Llama-3.1-8B-Instruct"}
EVERYTHING: dict[str, Any] = {
    "model": MODEL
    | {"revision": "main", "tokenSecretRef": {"name": "hub"}, "cache": {"size": "20Gi", "storageClassName": "fast"}},
    "engine": {
        "image": "registry.example.com/engine:1",
        "runAsNonRoot": True,
        "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "OTLP", "secretKeyRef": {"name": "otlp"}}],
    },
    "hardware": {
        "gpuProducts": ["A100-80GB"],
        "gpusPerReplica": 2,
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}],
    },
    "scaling": {"minReplicas": 2, "maxReplicas": 4},
    "rollout": {"surge": False},
    "podTemplate": {
        "labels": {"team": "a"},
        "annotations": {"note": "x"},
        "requests": {"cpu": "4"},
        "limits": {"memory": "64Gi"},
        "imagePullSecrets": ["registry"],
        "volumes": [{"name": "certs", "secret": {"secretName": "certs"}}],
        "volumeMounts": [{"name": "certs", "mountPath": "/certs"}],
    },
}
CASES = [
    pytest.param({"model": MODEL}, id="shortest"),
    pytest.param(EVERYTHING, id="everything"),
    pytest.param({"model": {"id": "pvc://weights/Llama-3.1-8B-Instruct"}}, id="model on a claim"),
    pytest.param({"model": MODEL, "engine": {"type": "vllm"}}, id="vLLM"),
]


def manifests_of(spec: dict[str, Any], name: str, namespace: str) -> list[dict[str, Any]]:
    parsed = parse_spec(spec)
    catalogue = load_catalogue()
    result = plan_spec(parsed, catalogue, model=catalogue.model(MODEL["id"]))
    assert result.plan is not None, result.errors
    return list(render(Owner(name, namespace), parsed, result.plan, 2, LiveSettings(max_in_flight=8)))


@pytest.fixture
def namespace(apiserver: Any) -> str:
    name = f"r-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", name)
    return name


def apply(server: Any, manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = "---\n".join(yaml.safe_dump(manifest) for manifest in manifests)
    out = server.kubectl("apply", "--server-side", "--field-manager=trimtab", "-o", "json", "-f", "-", input_text=text)
    answer: dict[str, Any] = json.loads(out)
    return list(answer["items"]) if answer["kind"] == "List" else [answer]


@pytest.mark.parametrize("spec", CASES)
def test_objects_are_accepted_and_writing_them_again_changes_nothing(
    apiserver: Any, namespace: str, spec: dict[str, Any]
) -> None:
    manifests = manifests_of(spec, "chat", namespace)
    first = apply(apiserver, manifests)
    assert [item["kind"] for item in first] == [manifest["kind"] for manifest in manifests]
    # The API server stores a claim once more at the second write, because its own admission added a finalizer.
    apply(apiserver, [manifest for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"] or manifests)
    before, after = apply(apiserver, manifests), apply(apiserver, manifests)
    assert [item["metadata"]["resourceVersion"] for item in before] == [
        item["metadata"]["resourceVersion"] for item in after
    ]


@pytest.mark.parametrize(
    ("spec", "level"),
    [
        pytest.param({"model": MODEL}, "baseline", id="public image"),
        pytest.param(
            {"model": MODEL, "engine": {"image": "registry.example.com/tgi:1", "runAsNonRoot": True}},
            "restricted",
            id="image without root",
        ),
    ],
)
def test_pods_pass_the_pod_security_standard(apiserver: Any, namespace: str, spec: dict[str, Any], level: str) -> None:
    apiserver.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/enforce={level}")
    manifests = manifests_of(spec, "chat", namespace)
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    apply(apiserver, [kinds["ServiceAccount"]])
    template = kinds["Deployment"]["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "probe", "namespace": namespace}
    apiserver.kubectl("create", "--dry-run=server", "-f", "-", input_text=json.dumps(pod))


def test_a_restricted_namespace_says_that_the_public_image_needs_root(apiserver: Any, namespace: str) -> None:
    apiserver.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kinds = {manifest["kind"]: manifest for manifest in manifests_of({"model": MODEL}, "chat", namespace)}
    apply(apiserver, [kinds["ServiceAccount"]])
    template = kinds["Deployment"]["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "probe", "namespace": namespace}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        apiserver.kubectl("create", "--dry-run=server", "-f", "-", input_text=json.dumps(pod))
    said = refused.value.stderr
    assert "runAsNonRoot" in said
    assert not any(word in said for word in ("seccompProfile", "capabilities", "allowPrivilegeEscalation", "volumes"))


def test_the_plain_manifests_install_an_operator_with_its_rights_and_no_more(apiserver: Any) -> None:
    apiserver.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy" / "trimtab.yaml"))
    who = "--as=system:serviceaccount:trimtab-system:trimtab-operator"

    def may(*question: str) -> bool:
        try:
            return apiserver.kubectl("auth", "can-i", *question, who).strip() == "yes"
        except subprocess.CalledProcessError as no:
            assert no.stdout.strip() == "no"
            return False

    everywhere = ("--namespace", "default")
    for verb in ("get", "list", "watch", "create", "patch", "delete"):
        assert may(verb, "deployments.apps", *everywhere), verb
    assert may("patch", "llmdeployments.trimtab.dev", "--subresource=status", *everywhere)
    assert may("list", "nodes")
    assert may("create", "leases.coordination.k8s.io", "--namespace", "trimtab-system")
    assert may("update", "leases.coordination.k8s.io/trimtab-operator", "--namespace", "trimtab-system")
    for verb, thing in (
        ("get", "secrets"),
        ("patch", "llmdeployments.trimtab.dev"),
        ("delete", "llmdeployments.trimtab.dev"),
        ("delete", "pods"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("update", "deployments.apps"),
        ("create", "leases.coordination.k8s.io"),
    ):
        assert not may(verb, thing, *everywhere), (verb, thing)
