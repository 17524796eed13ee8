"""All objects together: names, ownership, schema, security, golden files."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from trimtab.resources.identity import MAX_NAME, Owner, child_name, shortened
from trimtab.resources.render import render
from trimtab.resources.sidecar_config import LiveSettings, live_config
from trimtab.sidecar.config import parse_config, parse_live

from .conftest import OWNER, make_plan, rendered, spec_of

GOLDEN = Path(__file__).parent / "golden"

CASES = {
    "minimal": {},
    "full": {
        "model": {
            "id": "meta-llama/Llama-3.1-8B-Instruct",
            "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
            "tokenSecretRef": {"name": "hub", "key": "hf"},
            "cache": {"size": "200Gi", "storageClassName": "shared"},
        },
        "engine": {
            "image": "registry.example.com/tgi-nonroot:3.3.7",
            "runAsNonRoot": True,
            "extraArgs": ["--max-client-batch-size", "8"],
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        },
        "hardware": {"nodeSelector": {"pool": "gpu"}},
        "scaling": {"minReplicas": 2, "maxReplicas": 6},
        "rollout": {"surge": False},
        "podTemplate": {"requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"memory": "64Gi"}},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    """The files show in review what a change does to pods; TRIMTAB_UPDATE_GOLDEN=1 rewrites them."""
    spec = spec_of(**CASES[name])
    manifests = render(OWNER, spec, make_plan(spec), 2, LiveSettings(max_in_flight=16))
    text = yaml.safe_dump_all(manifests, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("TRIMTAB_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_valid_for_the_api_server(name):
    for manifest in rendered(spec_of(**CASES[name])).values():
        kubernetes_validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_owned_labelled_and_in_the_namespace(name):
    for manifest in rendered(spec_of(**CASES[name])).values():
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "team-a"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "trimtab"
        assert metadata["labels"]["trimtab.dev/deployment"] == "chat"
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == [OWNER.uid]


def test_without_a_cluster_nothing_is_owned():
    for manifest in rendered(spec_of(), owner=Owner("chat", "team-a")).values():
        assert "ownerReferences" not in manifest["metadata"]


def test_rendering_is_deterministic_and_shares_nothing():
    spec = spec_of(**CASES["full"])
    first = render(OWNER, spec, make_plan(spec), 2)
    again = copy.deepcopy(first)
    first[0]["metadata"]["labels"]["changed"] = "yes"
    assert render(OWNER, spec, make_plan(spec), 2) == again


def test_service_budget_and_deployment_select_the_same_pods():
    kinds = rendered(spec_of())
    selector = kinds["Deployment"]["spec"]["selector"]["matchLabels"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    assert kinds["Service"]["spec"]["selector"] == selector
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == selector
    ports = {
        port["name"]
        for container in kinds["Deployment"]["spec"]["template"]["spec"]["initContainers"]
        for port in container["ports"]
    }
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} <= ports


def restricted_problems(pod, container):
    """What the restricted Pod Security Standard would say of a container (kubernetes.io, Pod Security Standards)."""
    context = container.get("securityContext", {})
    merged = pod.get("securityContext", {}) | context
    problems = []
    if context.get("allowPrivilegeEscalation") is not False:
        problems.append("allowPrivilegeEscalation")
    if "ALL" not in context.get("capabilities", {}).get("drop", []) or context["capabilities"].get("add"):
        problems.append("capabilities")
    if merged.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        problems.append("seccompProfile")
    if merged.get("runAsNonRoot") is not True or merged.get("runAsUser") == 0:
        problems.append("runAsNonRoot")
    return problems


def test_the_sidecar_is_restricted_and_the_engine_as_far_as_its_image_allows():
    pods = [rendered(spec_of(**CASES[name]))["Deployment"]["spec"]["template"]["spec"] for name in ("minimal", "full")]
    for pod in pods:
        assert restricted_problems(pod, pod["initContainers"][0]) == []
        assert pod["initContainers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert restricted_problems(pods[0], pods[0]["containers"][0]) == ["runAsNonRoot"]
    assert restricted_problems(pods[1], pods[1]["containers"][0]) == []


def test_every_container_has_probes_and_requests():
    pod = rendered(spec_of())["Deployment"]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        named = {port["name"] for port in container["ports"]}
        assert container["livenessProbe"]["httpGet"]["port"] in named
        assert ":" in container["image"]
        assert not container["image"].endswith(":latest")


def test_every_mount_has_its_volume():
    for name in CASES:
        pod = rendered(spec_of(**CASES[name]))["Deployment"]["spec"]["template"]["spec"]
        volumes = [volume["name"] for volume in pod["volumes"]]
        assert len(volumes) == len(set(volumes))
        for container in (*pod["initContainers"], *pod["containers"]):
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= set(volumes)
            assert len({mount["mountPath"] for mount in mounts}) == len(mounts)


@pytest.mark.parametrize("name", CASES)
def test_the_sidecar_reads_what_is_written_for_it(name):
    data = rendered(spec_of(**CASES[name]), live=LiveSettings(8, 16, 2.5))["ConfigMap"]["data"]
    config, live = parse_config(data["config.json"].encode()), parse_live(data["live.json"].encode())
    assert config.upstream == "http://127.0.0.1:8000"
    assert (config.listen.port, config.listen.metrics_port) == (8080, 9100)
    assert config.cache.exact.max_bytes == 256 * 2**20
    assert (live.max_in_flight, live.max_queue, live.queue_timeout_seconds) == (8, 16, 2.5)


def test_what_changes_answers_changes_the_cache_identity():
    def identity(plan, **fields):
        data = rendered(spec_of(**fields), plan=plan(spec_of(**fields)))["ConfigMap"]["data"]
        return parse_config(data["config.json"].encode()).identity

    seen = [
        identity(make_plan),
        identity(lambda spec: make_plan(spec, gpus=2)),
        identity(make_plan, engine={"image": "other:1"}),
        identity(make_plan, engine={"extraArgs": ["--tokenizer-config-path", "/x.json"]}),
        identity(make_plan, model={"id": "meta-llama/Llama-3.1-8B-Instruct", "revision": "abc"}),
    ]
    assert len(set(seen)) == len(seen)


def test_the_live_limit_never_exceeds_what_the_engine_accepts_nor_a_fixed_batch():
    plan = make_plan(spec_of())
    assert live_config(plan, LiveSettings(max_in_flight=500))["maxInFlight"] == 128
    assert live_config(plan, LiveSettings())["maxInFlight"] == plan.max_batch_within_slo
    fixed = replace(plan.settings, batching=replace(plan.settings.batching, max_batch_size=8))
    assert live_config(replace(plan, settings=fixed), LiveSettings(max_in_flight=64))["maxInFlight"] == 8


@pytest.mark.parametrize("name", ["chat", "a" * 63, "a" * 200, "team.chat", "team-chat", ("a" * 62) + ".b"])
def test_names_are_valid_labels_and_stay_apart(name):
    owner = Owner(name, "n")
    for suffix in ("", "sidecar", "models"):
        made = child_name(owner, suffix)
        assert len(made) <= MAX_NAME
        assert "." not in made
        assert made == child_name(owner, suffix)
    assert child_name(Owner("team.chat", "n")) != child_name(Owner("team-chat", "n"))
    assert shortened("a" * 100) != shortened("a" * 101)
