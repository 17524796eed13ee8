"""What runs: the pod, and what rolls it."""

import copy
from dataclasses import replace

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.engines.registry import get_engine
from trimtab.resources.identity import CONFIG_HASH
from trimtab.resources.sidecar_config import LiveSettings
from trimtab.sidecar.admin import SETTLE
from trimtab.sidecar.config import parse_config

from .conftest import GPU, make_plan, rendered, spec_of


def pod_of(kinds):
    return kinds["Deployment"]["spec"]["template"]["spec"]


def engine_of(kinds):
    return pod_of(kinds)["containers"][0]


def sidecar_of(kinds):
    return pod_of(kinds)["initContainers"][0]


def test_the_engine_runs_what_the_plan_says():
    spec = spec_of()
    plan = make_plan(spec, gpus=2)
    engine = engine_of(rendered(spec, plan=plan))
    assert tuple(engine["args"]) == plan.launcher_args
    assert engine["image"] == get_engine("tgi").image(GPU)
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert engine["resources"]["requests"]["nvidia.com/gpu"] == "2"


def test_the_sidecar_outlives_the_engine_and_the_grace_period_covers_the_drain():
    spec = spec_of(engine={"extraArgs": ["--graceful-termination-timeout", "200"]})
    kinds = rendered(spec)
    assert sidecar_of(kinds)["restartPolicy"] == "Always"
    assert "lifecycle" not in sidecar_of(kinds)
    hook = engine_of(kinds)["lifecycle"]["preStop"]["httpGet"]
    assert hook["port"] in [port["containerPort"] for port in sidecar_of(kinds)["ports"]]
    config = parse_config(kinds["ConfigMap"]["data"]["config.json"].encode())
    assert config.drain_timeout_seconds >= 200 + SETTLE
    assert pod_of(kinds)["terminationGracePeriodSeconds"] >= config.drain_timeout_seconds + 15


def test_startup_waits_longer_for_larger_weights():
    spec = spec_of()
    plan = make_plan(spec)
    heavy = replace(plan, option=replace(plan.option, weights_bytes=140_000_000_000))
    light_pod, heavy_pod = rendered(spec, plan=plan), rendered(spec, plan=heavy)
    waits = [engine_of(kinds)["startupProbe"] for kinds in (light_pod, heavy_pod)]
    seconds = [probe["periodSeconds"] * probe["failureThreshold"] for probe in waits]
    assert seconds[1] - seconds[0] > 1800
    assert heavy_pod["Deployment"]["spec"]["progressDeadlineSeconds"] > seconds[1]


def test_no_token_and_no_service_links_reach_the_pod():
    pod = pod_of(rendered(spec_of()))
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def test_hub_token_and_secret_variables_come_from_secrets():
    spec = spec_of(
        model={"id": "meta-llama/Llama-3.1-8B-Instruct", "tokenSecretRef": {"name": "hub"}},
        engine={
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "OTLP_AUTH", "secretKeyRef": {"name": "otlp", "key": "auth"}},
            ]
        },
    )
    env = {entry["name"]: entry for entry in engine_of(rendered(spec))["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env["OTLP_AUTH"]["valueFrom"] == {"secretKeyRef": {"name": "otlp", "key": "auth"}}
    assert env["NCCL_DEBUG"]["value"] == "INFO"
    assert all(entry.get("value") != "" for entry in env.values())


def test_a_model_on_a_claim_is_mounted_read_only_and_the_hub_is_left_alone():
    spec = spec_of(model={"id": "pvc://weights/llama/8b"})
    kinds = rendered(spec)
    engine = engine_of(kinds)
    mount = next(mount for mount in engine["volumeMounts"] if mount["mountPath"] == "/models")
    volume = next(volume for volume in pod_of(kinds)["volumes"] if volume["name"] == mount["name"])
    assert mount["readOnly"] is True
    assert volume["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in engine["env"]
    assert "/models/llama/8b" in engine["args"]


@pytest.mark.parametrize(
    ("cache", "source", "claim"),
    [
        pytest.param({}, {"emptyDir": {}}, None, id="default"),
        pytest.param(
            {"existingClaim": "shared"}, {"persistentVolumeClaim": {"claimName": "shared"}}, None, id="existing claim"
        ),
        pytest.param(
            {"size": "100Gi", "storageClassName": "fast"},
            {"persistentVolumeClaim": {"claimName": "chat-models"}},
            {
                "accessModes": ["ReadWriteMany"],
                "resources": {"requests": {"storage": "100Gi"}},
                "storageClassName": "fast",
            },
            id="claim of its own",
        ),
    ],
)
def test_where_downloaded_weights_go(cache, source, claim):
    spec = spec_of(
        model={"id": "meta-llama/Llama-3.1-8B-Instruct", "cache": cache}, scaling={"minReplicas": 1, "maxReplicas": 3}
    )
    kinds = rendered(spec)
    mount = next(mount for mount in engine_of(kinds)["volumeMounts"] if mount["mountPath"] == "/data")
    volume = next(volume for volume in pod_of(kinds)["volumes"] if volume["name"] == mount["name"])
    assert {key: value for key, value in volume.items() if key != "name"} == source
    assert kinds.get("PersistentVolumeClaim", {}).get("spec") == claim


@pytest.mark.parametrize(
    ("surge", "expected"),
    [(True, {"maxSurge": 1, "maxUnavailable": 0}), (False, {"maxSurge": 0, "maxUnavailable": 1})],
)
def test_surge_decides_which_pod_goes_first(surge, expected):
    strategy = rendered(spec_of(rollout={"surge": surge}))["Deployment"]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == expected


def test_pods_go_to_nodes_with_the_planned_product_whatever_affinity_the_user_states():
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    other = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term, other]}},
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
    }
    before = copy.deepcopy(affinity)
    pod = pod_of(rendered(spec_of(podTemplate={"affinity": affinity}, hardware={"nodeSelector": {"pool": "gpu"}})))
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    product = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    assert [entry["matchExpressions"][-1] for entry in terms] == [product, product]
    assert terms[0]["matchExpressions"][0] == term["matchExpressions"][0]
    assert terms[1]["matchFields"] == other["matchFields"]
    assert pod["affinity"]["podAntiAffinity"] == affinity["podAntiAffinity"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert affinity == before


def test_gpu_taints_are_tolerated_besides_the_users_own():
    own = {"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}
    pod = pod_of(rendered(spec_of(hardware={"tolerations": [own]})))
    assert pod["tolerations"] == [own, {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_what_the_tuner_decides_rolls_no_pod():
    spec = spec_of()
    quiet = rendered(spec, 1, live=LiveSettings(max_in_flight=4))
    busy = rendered(
        spec, 7, plan=make_plan(spec, max_batch_within_slo=99, kv_tokens=1), live=LiveSettings(max_in_flight=64)
    )
    assert quiet["Deployment"]["spec"]["template"] == busy["Deployment"]["spec"]["template"]
    assert quiet["ConfigMap"]["data"]["config.json"] == busy["ConfigMap"]["data"]["config.json"]
    assert quiet["ConfigMap"]["data"]["live.json"] != busy["ConfigMap"]["data"]["live.json"]
    assert (quiet["Deployment"]["spec"]["replicas"], busy["Deployment"]["spec"]["replicas"]) == (1, 7)


def test_replicas_are_left_to_another_autoscaler_when_asked():
    assert "replicas" not in rendered(spec_of(), None)["Deployment"]["spec"]
    assert rendered(spec_of(), 0)["Deployment"]["spec"]["replicas"] == 0


def test_a_change_of_the_static_configuration_rolls_pods():
    def config_hash(kinds):
        return kinds["Deployment"]["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH]

    assert config_hash(rendered(spec_of())) != config_hash(rendered(spec_of(cache={"exact": {"ttl": "5m"}})))


def test_an_upgrade_of_the_operator_alone_rolls_no_pod():
    spec = spec_of()
    before = rendered(spec, sidecar_image="sidecar:1")["Deployment"]
    after = rendered(spec, sidecar_image="sidecar:2", running=before)["Deployment"]
    assert after["spec"]["template"] == before["spec"]["template"]
    changed = spec_of(cache={"exact": {"ttl": "5m"}})
    rolled = rendered(changed, sidecar_image="sidecar:2", running=before)
    assert sidecar_of(rolled)["image"] == "sidecar:2"


def test_a_hand_edited_sidecar_image_is_put_back():
    spec = spec_of()
    before = rendered(spec, sidecar_image="sidecar:1")["Deployment"]
    edited = copy.deepcopy(before)
    edited["spec"]["template"]["spec"]["initContainers"][0]["image"] = "evil:1"
    assert sidecar_of(rendered(spec, sidecar_image="sidecar:2", running=edited))["image"] == "sidecar:1"


def test_the_sidecars_memory_covers_its_cache():
    small = sidecar_of(rendered(spec_of(cache={"exact": {"maxBytes": "64Mi"}})))
    large = sidecar_of(rendered(spec_of(cache={"exact": {"maxBytes": "4Gi"}})))
    limits = [int(container["resources"]["limits"]["memory"].removesuffix("Mi")) for container in (small, large)]
    assert limits[0] > 64 + 256
    assert limits[1] > 4096 + 256
    assert "cpu" not in small["resources"]["limits"]


def test_podtemplate_goes_into_the_pod():
    spec = spec_of(
        podTemplate={
            "labels": {"team": "a"},
            "annotations": {"note": "x"},
            "requests": {"cpu": "4"},
            "limits": {"memory": "64Gi"},
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "imagePullSecrets": ["regcred"],
            "volumes": [{"name": "certs", "secret": {"secretName": "certs"}}],
            "volumeMounts": [{"name": "certs", "mountPath": "/certs", "readOnly": True}],
        }
    )
    kinds = rendered(spec)
    template, pod, engine = kinds["Deployment"]["spec"]["template"], pod_of(kinds), engine_of(kinds)
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"]["note"] == "x"
    assert engine["resources"]["requests"]["cpu"] == "4"
    assert engine["resources"]["requests"]["memory"] == "64Gi"
    assert engine["resources"]["limits"]["memory"] == "64Gi"
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("high", "nvidia")
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]
    assert {"name": "certs", "secret": {"secretName": "certs"}} in pod["volumes"]
    assert {"name": "certs", "mountPath": "/certs", "readOnly": True} in engine["volumeMounts"]


@pytest.mark.parametrize(
    ("template", "field"),
    [
        pytest.param({"labels": {"trimtab.dev/deployment": "x"}}, "labels", id="our label"),
        pytest.param({"annotations": {"trimtab.dev/config-hash": "x"}}, "annotations", id="our annotation"),
        pytest.param({"volumes": [{"name": "trimtab-shm"}]}, "volumes.0.name", id="our volume"),
        pytest.param({"volumes": [{"name": "a"}, {"name": "a"}]}, "volumes.1.name", id="same volume twice"),
        pytest.param(
            {"volumes": [{"name": "a"}], "volumeMounts": [{"name": "a", "mountPath": "/data"}]},
            "volumeMounts.0.mountPath",
            id="path of the model cache",
        ),
        pytest.param({"volumeMounts": [{"name": "b", "mountPath": "/b"}]}, "volumeMounts.0.name", id="unknown volume"),
    ],
)
def test_collisions_of_the_escape_hatch_are_refused(template, field):
    with pytest.raises(InvalidSpecError) as refused:
        rendered(spec_of(podTemplate=template))
    assert any(field in error.field for error in refused.value.errors)
