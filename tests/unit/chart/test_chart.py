"""The chart, rendered by a real Helm: rights, security, settings, and the plain manifests made from it."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import jsonschema
import kubernetes_validate
import pytest
import yaml

from trimtab.catalog.catalogue import load_catalogue
from trimtab.controller.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "trimtab"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "deploy" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def helm() -> str:
    found = shutil.which("helm")
    if found is not None:
        return found
    from devcluster.build import helm as built
    from devcluster.paths import ClusterError

    try:
        return str(built())
    except ClusterError as missing:
        pytest.skip(f"no Helm and none can be built: {missing}")


def template(helm: str, *values: str, release: str = "trimtab") -> list[dict]:
    sets = [part for value in values for part in ("--set", value)]
    done = subprocess.run(
        [helm, "template", release, str(CHART), "--namespace", "ops", "--kube-version", "1.36.0", *sets],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(done.stderr)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def granted(documents: list[dict], *kinds: str) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of all rules."""
    return {
        (group, resource, verb)
        for kind in kinds
        for role in of_kind(documents, kind)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


READ = ("get", "list", "watch")
OWNED = (*READ, "create", "patch", "delete")
NEEDED = {
    *(("trimtab.dev", "llmdeployments", verb) for verb in READ),
    ("trimtab.dev", "llmdeployments/status", "patch"),
    ("trimtab.dev", "llmdeployments/finalizers", "update"),
    *(("apps", "deployments", verb) for verb in OWNED),
    *(("", "services", verb) for verb in OWNED),
    *(("", "configmaps", verb) for verb in OWNED),
    *(("", "serviceaccounts", verb) for verb in OWNED),
    *(("", "persistentvolumeclaims", verb) for verb in OWNED),
    *(("policy", "poddisruptionbudgets", verb) for verb in OWNED),
    *(("", "pods", verb) for verb in (*READ, "patch")),
    ("events.k8s.io", "events", "create"),
    ("events.k8s.io", "events", "patch"),
    ("autoscaling", "horizontalpodautoscalers", "list"),
}
NODES = {("", "nodes", verb) for verb in READ}
LEASES = {("coordination.k8s.io", "leases", verb) for verb in ("create", "get", "update", "patch")}


def test_the_operator_gets_exactly_the_rights_that_it_uses(helm):
    documents = template(helm)
    assert granted(documents, "ClusterRole") == NEEDED | NODES
    assert granted(documents, "Role") == LEASES


def test_with_a_list_of_namespaces_nothing_but_nodes_is_cluster_wide(helm):
    documents = template(helm, "namespaces={team-a,team-b}")
    assert granted(documents, "ClusterRole") == NODES
    roles = [role for role in of_kind(documents, "Role") if role["metadata"]["namespace"] != "ops"]
    assert [role["metadata"]["namespace"] for role in roles] == ["team-a", "team-b"]
    assert all(granted([role], "Role") == NEEDED for role in roles)
    bound = [binding["metadata"]["namespace"] for binding in of_kind(documents, "RoleBinding")]
    assert sorted(bound) == ["ops", "team-a", "team-b"]


def test_without_nodes_nothing_is_cluster_wide(helm):
    documents = template(helm, "namespaces={team-a}", "watchNodes=false")
    assert of_kind(documents, "ClusterRole") == []
    assert of_kind(documents, "ClusterRoleBinding") == []


def test_the_operator_meets_the_restricted_standard(helm):
    pod = of_kind(template(helm), "Deployment")[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    context = pod["securityContext"] | container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert "memory" in container["resources"]["limits"]


ALL_ON = (
    "namespaces={team-a}",
    "replicaCount=2",
    "sidecarImage=registry.example.com/sidecar:1",
    "prometheus.url=https://prometheus.example.com",
    "prometheus.auth=token",
    "prometheus.privateAuthority=true",
    "prometheus.secretName=prometheus",
    "extraEnv.TRIMTAB_CONCURRENCY=4",
    "hub.endpoint=https://mirror.example.com",
    "catalogue.gpus[0].id=X100",
    "imagePullSecrets[0].name=registry",
    "nodeSelector.pool=system",
    "priorityClassName=system-cluster-critical",
    "podAnnotations.note=x",
    "serviceAccount.annotations.note=x",
)


@pytest.mark.parametrize("values", [(), ALL_ON, ("leaderElection=false",), ("prometheus.auth=basic",)])
def test_settings_are_those_that_the_operator_knows(helm, values):
    if values == ("prometheus.auth=basic",):
        values = (*values, "prometheus.url=http://p:9090", "prometheus.secretName=p")
    container = of_kind(template(helm, *values), "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names))
    assert {name.removeprefix(PREFIX).lower() for name in names} - {"hf_endpoint"} <= Settings.model_fields.keys()
    settings = load_settings({entry["name"]: entry.get("value", "from-elsewhere") for entry in container["env"]})
    assert settings.web_port == container["ports"][0]["containerPort"]
    if values == ALL_ON:
        assert settings.namespaces == ("team-a",)
        assert settings.concurrency == 4
        folders = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert str(settings.prometheus_token_file.parent) in folders
        assert str(settings.catalogue_file.parent) in folders


@pytest.mark.parametrize("values", [(), ALL_ON, ("leaderElection=false",)])
def test_objects_are_valid(helm, values):
    documents = template(helm, *values)
    assert len(documents) > 4
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_additions_to_the_catalogue_are_those_that_the_operator_reads(helm, tmp_path):
    gpu = {
        "id": "X100",
        "memory_gib": 100,
        "bandwidth_gb_s": 1000,
        "fp16_tflops": 100,
        "compute_capability": 9.0,
        "sources": ["data sheet"],
    }
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"catalogue": {"gpus": [gpu]}}), encoding="utf-8")
    done = subprocess.run(
        [helm, "template", "t", str(CHART), "--kube-version", "1.36.0", "-f", str(values)],
        capture_output=True,
        text=True,
        check=True,
    )
    documents = list(yaml.safe_load_all(done.stdout))
    written = json.loads(of_kind(documents, "ConfigMap")[0]["data"]["catalogue.json"])
    assert load_catalogue().merged(written).gpu("X100").memory_gib == 100


def test_without_election_two_operators_never_run_together(helm):
    documents = template(helm, "leaderElection=false")
    assert of_kind(documents, "Deployment")[0]["spec"]["strategy"] == {"type": "Recreate"}
    assert of_kind(documents, "Role") == []


def test_pod_monitors_give_series_the_labels_that_tuning_asks_for(helm):
    monitors = of_kind(template(helm, "metrics.podMonitor.enabled=true"), "PodMonitor")
    engines = next(monitor for monitor in monitors if monitor["metadata"]["name"].endswith("-engines"))
    assert [endpoint["port"] for endpoint in engines["spec"]["podMetricsEndpoints"]] == ["metrics", "engine"]
    for endpoint in engines["spec"]["podMetricsEndpoints"]:
        assert endpoint["relabelings"][0] == {
            "sourceLabels": ["__meta_kubernetes_pod_label_trimtab_dev_deployment"],
            "targetLabel": "llmdeployment",
        }
    assert engines["spec"]["namespaceSelector"] == {"any": True}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("image.tag=latest", "tag"),
        ("replicaCount=-1", "replicaCount"),
        ("namespaces={Team}", "namespaces"),
        ("prometheus.url=prometheus:9090", "url"),
        ("prometheus.auth=token", "secretName"),
        ("extraEnv.OTHER=1", "OTHER"),
        ("tunning.intervalSeconds=5", "tunning"),
        ("log.level=LOUD", "level"),
    ],
)
def test_wrong_values_are_refused(helm, value, word):
    with pytest.raises(ValueError, match=word):
        template(helm, value)


def test_the_default_values_satisfy_the_schema_and_each_has_one():
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert values.keys() == schema["properties"].keys() - {"global"}


def test_the_charts_crd_is_the_generated_one():
    name = "llmdeployments.trimtab.dev.yaml"
    assert (CHART / "crds" / name).read_bytes() == (ROOT / "crds" / name).read_bytes()


def test_plain_manifests_are_those_of_the_chart(helm):
    """`make manifests` brings them up to date."""
    assert load_generator().generate(helm) == (ROOT / "deploy" / "trimtab.yaml").read_text("utf-8")
