"""`trimtab render`: manifests on standard output, reasons on standard error, exit codes as `trimtab plan`."""

import json

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from trimtab.cli.main import main

SPEC = {
    "apiVersion": "trimtab.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "chat", "namespace": "team-a"},
    "spec": {
        "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
        "hardware": {"gpuProducts": ["L4"]},
        "scaling": {"minReplicas": 2, "maxReplicas": 4},
    },
}


def run(*args: str, spec=None):
    return CliRunner().invoke(main, ["render", *args], input=yaml.safe_dump(SPEC if spec is None else spec))


def test_prints_valid_manifests_with_the_plan_as_a_comment():
    result = run("-", "--sidecar-image", "registry.example.com/sidecar:1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("# Planned: meta-llama/Llama-3.1-8B-Instruct")
    manifests = list(yaml.safe_load_all(result.stdout))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37", strict=True)
        assert manifest["metadata"]["namespace"] == "team-a"
    kinds = {manifest["kind"]: manifest for manifest in manifests}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    assert kinds["Deployment"]["spec"]["replicas"] == 2
    assert pod["initContainers"][0]["image"] == "registry.example.com/sidecar:1"
    assert json.loads(kinds["ConfigMap"]["data"]["live.json"])["maxInFlight"] >= 1


def test_replicas_can_be_stated():
    manifests = yaml.safe_load_all(run("-", "--replicas", "7").stdout)
    assert [one["spec"]["replicas"] for one in manifests if one["kind"] == "Deployment"] == [7]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        pytest.param({"model": {"id": "meta-llama/Llama-3.1-8B-Instruct", "size": "small"}}, 2, "size", id="invalid"),
        pytest.param(
            {
                "model": {"id": "meta-llama/Llama-3.1-405B-Instruct"},
                "hardware": {"gpuProducts": ["T4"], "gpusPerReplica": 1},
            },
            3,
            "405B",
            id="nothing fits",
        ),
        pytest.param({"podTemplate": {"volumes": [{"name": "trimtab-shm"}]}}, 2, "reserved", id="collision"),
        pytest.param({"engine": {"extraArgs": ["--no-such-flag"]}}, 2, "--no-such-flag", id="unknown flag"),
    ],
)
def test_what_cannot_be_rendered_is_explained_on_standard_error(change, code, words):
    result = run("-", spec=SPEC | {"spec": SPEC["spec"] | change})
    assert result.stdout == ""
    assert words in result.stderr
    assert result.exit_code == code


def test_a_missing_file_is_named(tmp_path):
    result = CliRunner().invoke(main, ["render", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "none.yaml" in result.stderr
