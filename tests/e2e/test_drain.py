"""A pod that is deleted finishes what it has accepted: at the engine and in the sidecar's queue."""

import json
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from trimtab.api.resource import parse_spec
from trimtab.catalog.catalogue import load_catalogue
from trimtab.plan.planner import plan_spec
from trimtab.resources.identity import Owner
from trimtab.resources.render import render
from trimtab.resources.sidecar_config import LiveSettings

pytestmark = pytest.mark.e2e
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TOKENS = 120
SPEC: dict[str, Any] = {
    "model": {"id": "meta-llama/Llama-3.1-8B-Instruct"},
    "engine": {
        "image": "trimtab/tgi-sim:dev",
        "runAsNonRoot": True,
        "env": [{"name": "TRIMTAB_SIM_GPU", "value": "L4"}, {"name": "TRIMTAB_SIM_BOOT_SECONDS", "value": "1"}],
    },
    "hardware": {"gpuProducts": ["NVIDIA-L4"], "gpusPerReplica": 1},
    "context": {"maxInputTokens": 2048, "maxTotalTokens": 4096},
    "podTemplate": {"shmSize": "16Mi"},
}


@pytest.fixture
def serving(cluster: Any, namespace: str) -> dict[str, Any]:
    """A ready pod with one request in flight at a time, without an operator."""
    spec = parse_spec(SPEC)
    result = plan_spec(spec, load_catalogue())
    assert result.plan is not None
    live = LiveSettings(max_in_flight=1)
    manifests = render(Owner("chat", namespace), spec, result.plan, 1, live, sidecar_image="trimtab/sidecar:dev")
    cluster.apply(*manifests)
    cluster.kubectl("rollout", "status", "deployment/chat", "-n", namespace, "--timeout=120s")
    pods: list[dict[str, Any]] = cluster.items("pod", namespace)
    return pods[0]


class Stream(threading.Thread):
    """A streamed request and what came of it."""

    def __init__(self, address: str, text: str) -> None:
        super().__init__(daemon=True)
        body = {"inputs": text, "parameters": {"max_new_tokens": TOKENS, "ignore_eos_token": True}}
        self._request = urllib.request.Request(
            f"http://{address}:8080/generate_stream",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        self.begun = threading.Event()
        self.events: list[dict[str, Any]] = []
        self.failure = ""

    def run(self) -> None:
        try:
            with OPENER.open(self._request, timeout=120) as answer:
                for line in answer:
                    if line.startswith(b"data:"):
                        self.events.append(json.loads(line[5:]))
                        self.begun.set()
        except OSError as error:
            self.failure = str(error)
            self.begun.set()

    def finished(self) -> bool:
        return not self.failure and bool(self.events) and self.events[-1].get("generated_text") is not None


def test_requests_in_flight_and_in_the_queue_outlive_the_deletion_of_their_pod(
    cluster: Any, namespace: str, serving: dict[str, Any], kubectl: Callable[..., str]
) -> None:
    address, name = serving["status"]["podIP"], serving["metadata"]["name"]
    running, queued = Stream(address, "the first"), Stream(address, "the second")
    running.start()
    assert running.begun.wait(60), "the first request began"
    queued.start()

    def status() -> dict[str, Any]:
        with OPENER.open(f"http://{address}:9100/status", timeout=10) as answer:
            loaded: dict[str, Any] = json.load(answer)
        return loaded

    cluster.wait("the second request waits in the queue", lambda: status()["queueDepth"] == 1, 30)
    kubectl("scale", "deployment/chat", "-n", namespace, "--replicas=0")
    cluster.wait("the pod is told to end", lambda: status()["draining"], 30)
    running.join(120)
    queued.join(120)
    for stream in (running, queued):
        assert stream.finished(), (stream.failure, stream.events[-1:])
    cluster.wait("the pod has ended", lambda: cluster.get("pod", name, namespace) is None, 120)
    assert not [event for event in cluster.items("event", namespace) if event.get("reason") == "FailedPreStopHook"]
