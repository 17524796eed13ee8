"""The installed operator on a real node: from an LLMDeployment to answers, through trouble, to nothing."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from devcluster import build

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SYSTEM = "trimtab-system"
CHILDREN = ("deployment", "service", "configmap", "serviceaccount", "poddisruptionbudget")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def operator(cluster: Any) -> Iterator[Any]:
    """The operator, installed with its chart as the demo does."""
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    helm = [str(build.helm()), f"--kubeconfig={cluster.kubeconfig}"]
    values = str(ROOT / "examples" / "demo" / "values.yaml")
    options = ["--create-namespace", "-f", values, "--wait", "--timeout", "120s"]
    command = [*helm, "upgrade", "--install", "trimtab", str(ROOT / "charts" / "trimtab"), "-n", SYSTEM, *options]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    # An earlier run may have left an operator with older code behind the same tag.
    cluster.kubectl("rollout", "restart", "deployment/trimtab-operator", "-n", SYSTEM)
    cluster.kubectl("rollout", "status", "deployment/trimtab-operator", "-n", SYSTEM, "--timeout=120s")
    yield cluster
    subprocess.run([*helm, "uninstall", "trimtab", "-n", SYSTEM, "--wait"], capture_output=True, check=False)


def _resource(namespace: str, **spec: Any) -> dict[str, Any]:
    engine = {
        "image": "trimtab/tgi-sim:dev",
        "runAsNonRoot": True,
        "env": [
            {"name": "TRIMTAB_SIM_GPU", "value": "L4"},
            {"name": "TRIMTAB_SIM_BOOT_SECONDS", "value": "1"},
        ],
    }
    return {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {
            "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
            "engine": engine,
            "hardware": {"gpusPerReplica": 1},
            "slo": {"ttft": {"p95": "2s"}, "tpot": {"p95": "200ms"}},
            "context": {"maxInputTokens": 2048, "maxTotalTokens": 4096},
            **spec,
        },
    }


def _condition(cluster: Any, namespace: str, kind: str) -> dict[str, Any]:
    resource = cluster.get("llmdeployment", "chat", namespace) or {}
    conditions = resource.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry["type"] == kind), {"status": "Unknown", "message": "none"})


@pytest.fixture
def chat(operator: Any, namespace: str) -> Callable[..., str]:
    """Apply an LLMDeployment and wait until it is Ready; gives the namespace."""

    def start(**spec: Any) -> str:
        operator.apply(_resource(namespace, **spec))
        operator.wait(
            "the LLMDeployment is Ready", lambda: _condition(operator, namespace, "Ready")["status"] == "True", 120
        )
        return namespace

    return start


def _ask(
    cluster: Any, namespace: str, text: str, tokens: int = 8, model: str = "tgi"
) -> tuple[dict[str, Any], dict[str, str]]:
    address = cluster.get("service", "chat", namespace)["spec"]["clusterIP"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": tokens,
    }
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with OPENER.open(request, timeout=60) as answer:
        return json.load(answer), {name.lower(): value for name, value in answer.headers.items()}


def test_an_llmdeployment_answers_and_the_second_time_from_the_cache(operator: Any, chat: Callable[..., str]) -> None:
    namespace = chat()
    first, _ = _ask(operator, namespace, "What is a trim tab?")
    assert first["choices"][0]["message"]["content"]
    assert first["usage"]["completion_tokens"] == 8
    again, headers = _ask(operator, namespace, "What is a trim tab?")
    assert again["choices"] == first["choices"]
    assert "hit" in headers["cache-status"]
    other, _ = _ask(operator, namespace, "What is a rudder?")
    assert other["choices"] != first["choices"]


def test_children_that_are_edited_or_deleted_come_back(operator: Any, chat: Callable[..., str]) -> None:
    namespace = chat()
    operator.kubectl("delete", "service", "chat", "-n", namespace)
    patch = json.dumps({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})
    before = operator.get("deployment", "chat", namespace)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    operator.kubectl("patch", "deployment", "chat", "-n", namespace, "--type=merge", "-p", patch)
    operator.wait("the Service is back", lambda: operator.get("service", "chat", namespace), 30)

    def repaired() -> bool:
        template = operator.get("deployment", "chat", namespace)["spec"]["template"]
        return bool(template["spec"]["terminationGracePeriodSeconds"] == before)

    operator.wait("the Deployment is repaired", repaired, 30)


def test_clients_notice_nothing_when_the_operator_dies(operator: Any, chat: Callable[..., str]) -> None:
    namespace = chat()

    def uids() -> set[str]:
        pods = operator.items("pod", namespace, "-l", "trimtab.dev/deployment=chat")
        return {pod["metadata"]["uid"] for pod in pods}

    serving = uids()
    operator.kubectl(
        "delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/name=trimtab-operator", "--force", "--grace-period=0"
    )
    for number in range(10):
        answer, _ = _ask(operator, namespace, f"question {number}")
        assert answer["usage"]["completion_tokens"] == 8
    operator.kubectl("rollout", "status", "deployment/trimtab-operator", "-n", SYSTEM, "--timeout=120s")
    time.sleep(5)
    assert uids() == serving, "a new operator must not restart what serves"


def test_scaling_and_deleting(operator: Any, chat: Callable[..., str]) -> None:
    namespace = chat()
    operator.kubectl("scale", "llmd", "chat", "-n", namespace, "--replicas=2")
    operator.wait(
        "two pods serve",
        lambda: operator.get("llmdeployment", "chat", namespace)["status"].get("readyReplicas") == 2,
        90,
    )
    operator.kubectl("delete", "llmd", "chat", "-n", namespace)
    label = "trimtab.dev/deployment=chat"
    operator.wait(
        "no object is left",
        lambda: not any(operator.items(kind, namespace, "-l", label) for kind in (*CHILDREN, "pod")),
        150,
    )


def test_a_spec_that_fits_nowhere_says_so_and_leaves_what_runs_alone(operator: Any, chat: Callable[..., str]) -> None:
    namespace = chat()
    deployment = operator.get("deployment", "chat", namespace)
    operator.apply(_resource(namespace, model={"id": "meta-llama/Llama-3.1-70B-Instruct"}))
    operator.wait("the problem is told", lambda: _condition(operator, namespace, "Planned")["status"] == "False", 30)
    message = _condition(operator, namespace, "Planned")["message"]
    assert "70B" in message
    assert operator.get("deployment", "chat", namespace)["spec"]["template"] == deployment["spec"]["template"]
    answer, _ = _ask(operator, namespace, "still there?")
    assert answer["usage"]["completion_tokens"] == 8


def test_vllm_serves_behind_the_same_sidecar(operator: Any, chat: Callable[..., str]) -> None:
    engine = {
        "type": "vllm",
        "image": "trimtab/vllm-sim:dev",
        "runAsNonRoot": True,
        "env": [
            {"name": "TRIMTAB_SIM_GPU", "value": "L4"},
            {"name": "TRIMTAB_SIM_BOOT_SECONDS", "value": "1"},
        ],
    }
    # vLLM has no limit on the prompt alone.
    namespace = chat(engine=engine, context={"maxTotalTokens": 4096})
    status = operator.get("llmdeployment", "chat", namespace)["status"]
    assert status["plan"]["engine"].startswith("vllm-")
    answer, _ = _ask(operator, namespace, "What is a trim tab?", model="meta-llama/Llama-3.1-8B-Instruct")
    assert answer["usage"]["completion_tokens"] == 8
