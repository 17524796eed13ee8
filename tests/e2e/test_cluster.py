"""What the operator relies on is so in the local cluster: each test is one such thing."""

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devcluster.paths import NODE
from devcluster.volumes import STORAGE_CLASS

pytestmark = pytest.mark.e2e

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
GPU = "nvidia.com/gpu"


def _container(image: str, *command: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": list(command),
        "securityContext": RESTRICTED,
        **more,
    }


def _pod(name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 30, "containers": [container], **spec},
    }


def _ready(cluster: Any, namespace: str, pod: str) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "-n", namespace, "--timeout=90s")


@pytest.fixture
def web(cluster: Any, namespace: str, tool_image: str) -> str:
    """A ready pod and Service `web` on port 80 in the namespace."""
    container = _container(
        tool_image,
        *("python3", "-u", "-m", "http.server", "8000", "--directory", "/etc"),
        ports=[{"name": "http", "containerPort": 8000}],
        readinessProbe={"httpGet": {"path": "/hostname", "port": "http"}, "periodSeconds": 1},
    )
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    }
    for manifest in (_pod("web", container), service):
        manifest["metadata"]["namespace"] = namespace
        cluster.apply(manifest)
    _ready(cluster, namespace, "web")
    return "web"


def _fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_restricted_pod_is_really_confined(cluster: Any, namespace: str, web: str) -> None:
    status = cluster.kubectl("exec", web, "-n", namespace, "--", "cat", "/proc/self/status")
    facts = {key: value.split() for key, value in (line.split(":", 1) for line in status.splitlines())}
    assert facts["Uid"][0] == "65532"
    assert int(facts["CapEff"][0], 16) == 0
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"], "2 is filter mode"
    written = "touch /x || echo refused"
    assert "refused" in cluster.kubectl("exec", web, "-n", namespace, "--", "sh", "-c", written)


def test_a_privileged_pod_is_refused(cluster: Any, namespace: str, tool_image: str) -> None:
    container = _container(tool_image, "sleep", "1") | {"securityContext": {"privileged": True}}
    manifest = _pod("wrong", container)
    manifest["metadata"]["namespace"] = namespace
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cluster.apply(manifest)
    assert "violates PodSecurity" in refused.value.stderr or "violates PodSecurity" in str(refused.value.__notes__)


def test_a_service_answers_from_the_host_and_by_name_in_pods(
    cluster: Any, namespace: str, web: str, eventually: Callable[..., Any]
) -> None:
    address = cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"]

    def answer_on_host() -> str:
        # kube-proxy refuses connections until it has learnt of the pod, a moment after the pod is ready.
        with contextlib.suppress(urllib.error.URLError):
            return _fetch(f"http://{address}/hostname").strip()
        return ""

    assert eventually(answer_on_host) == web
    for host in ("web", f"web.{namespace}.svc", f"web.{namespace}.svc.cluster.local", address):
        code = f"import urllib.request as u; print(u.urlopen('http://{host}/hostname', timeout=10).read().decode())"
        answer = cluster.kubectl("exec", web, "-n", namespace, "--", "python3", "-c", code)
        assert answer.strip() == web, host


def test_logs_and_port_forward_reach_the_pod(
    cluster: Any, namespace: str, web: str, eventually: Callable[..., Any]
) -> None:
    command = cluster.command("port-forward", f"pod/{web}", ":8000", "-n", namespace, "--address=127.0.0.1")
    with _running(command) as process:
        line = process.stdout.readline()
        port = line.split("127.0.0.1:")[1].split()[0]
        assert _fetch(f"http://127.0.0.1:{port}/hostname?forwarded").strip() == web
    eventually(lambda: "hostname?forwarded" in cluster.kubectl("logs", web, "-n", namespace))


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[Any]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_a_changed_config_map_reaches_the_pod_once_an_annotation_is_patched(
    cluster: Any, namespace: str, tool_image: str, eventually: Callable[..., Any]
) -> None:
    # Left alone, the kubelet looks again after 60 to 90 s; a changed pod makes it look at once.
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "live", "namespace": namespace},
        "data": {"live.json": "0"},
    }
    mounts = [{"name": "live", "mountPath": "/etc/live"}]
    volumes = [{"name": "live", "configMap": {"name": "live"}}]
    manifest = _pod("reader", _container(tool_image, "sleep", "600", volumeMounts=mounts), volumes=volumes)
    manifest["metadata"]["namespace"] = namespace
    manifest["spec"]["terminationGracePeriodSeconds"] = 0
    cluster.apply(config, manifest)
    _ready(cluster, namespace, "reader")
    for revision in ("1", "2", "3"):
        started = time.monotonic()
        cluster.apply(config | {"data": {"live.json": revision}})
        cluster.kubectl("annotate", "pod", "reader", f"example.org/live={revision}", "-n", namespace, "--overwrite")
        read = ("exec", "reader", "-n", namespace, "--", "cat", "/etc/live/live.json")
        eventually(lambda expected=revision, read=read: cluster.kubectl(*read) == expected, 20)
        print(f"revision {revision} was in the pod {time.monotonic() - started:.2f} s after the write began")


def _free_gpus(cluster: Any) -> int:
    offered = int(cluster.get("node", NODE)["status"]["allocatable"][GPU])
    pods = cluster.get("pods", "-A", "--field-selector=status.phase!=Succeeded,status.phase!=Failed")["items"]
    containers = [container for pod in pods if pod["spec"].get("nodeName") for container in pod["spec"]["containers"]]
    return offered - sum(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) for c in containers)


def test_the_scheduler_counts_the_gpus(
    cluster: Any, namespace: str, tool_image: str, eventually: Callable[..., Any]
) -> None:
    free = _free_gpus(cluster)
    for name, gpus in (("fits", free), ("waits", 1)):
        container = _container(tool_image, "sleep", "600", resources={"limits": {GPU: str(gpus)}})
        manifest = _pod(name, container, terminationGracePeriodSeconds=0)
        manifest["metadata"]["namespace"] = namespace
        cluster.apply(manifest)
        if name == "fits":
            _ready(cluster, namespace, name)

    def refusal() -> str:
        conditions = cluster.get("pod", "waits", "-n", namespace)["status"].get("conditions", [])
        return next((c["message"] for c in conditions if c.get("reason") == "Unschedulable"), "")

    assert f"Insufficient {GPU}" in eventually(refusal)
    cluster.kubectl("delete", "pod", "fits", "-n", namespace, "--now")
    _ready(cluster, namespace, "waits")


def test_the_gpus_outlive_the_kubelets_own_reports(cluster: Any, eventually: Callable[..., Any]) -> None:
    def heartbeat() -> str:
        conditions = cluster.get("node", NODE)["status"]["conditions"]
        return str(next(c["lastHeartbeatTime"] for c in conditions if c["type"] == "Ready"))

    first = heartbeat()
    eventually(lambda: heartbeat() != first)
    node = cluster.get("node", NODE)
    assert node["status"]["capacity"][GPU] == node["metadata"]["labels"]["nvidia.com/gpu.count"]
    assert node["metadata"]["labels"]["nvidia.com/gpu.present"] == "true"


SIDECAR = """
import os, signal, sys, time
def stop(*_):
    print("told to end; main has ended:", os.path.exists("/shared/ended"), flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print("sidecar runs", flush=True)
while True:
    if os.path.exists("/shared/hook"):
        print("hook ran; main has ended:", os.path.exists("/shared/ended"), flush=True)
        os.remove("/shared/hook")
    time.sleep(0.05)
"""
MAIN = "trap 'sleep 2; touch /shared/ended; exit' TERM; echo main runs; while true; do sleep 0.1; done"


def test_a_native_sidecar_starts_first_and_ends_last(cluster: Any, namespace: str, tool_image: str) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    hook = {"preStop": {"exec": {"command": ["touch", "/shared/hook"]}}}
    started = {"exec": {"command": ["test", "-d", "/shared"]}, "periodSeconds": 1}
    sidecar = _container(tool_image, "python3", "-u", "-c", SIDECAR, volumeMounts=mounts, lifecycle=hook)
    sidecar |= {"name": "sidecar", "restartPolicy": "Always", "startupProbe": started}
    main = _container(tool_image, "sh", "-c", MAIN, volumeMounts=mounts)
    manifest = _pod("both", main, initContainers=[sidecar], volumes=[{"name": "shared", "emptyDir": {}}])
    manifest["metadata"]["namespace"] = namespace
    cluster.apply(manifest)
    _ready(cluster, namespace, "both")
    command = cluster.command("logs", "both", "-c", "sidecar", "-n", namespace, "--follow")
    with _running(command) as process:
        assert process.stdout.readline().strip() == "sidecar runs"
        cluster.kubectl("delete", "pod", "both", "-n", namespace)
        lines = process.stdout.read().splitlines()
    # The hook runs as soon as the pod is deleted; the signal waits for the main container.
    assert lines == ["hook ran; main has ended: False", "told to end; main has ended: True"]


def test_a_claim_binds_and_holds_what_a_plain_user_writes(cluster: Any, namespace: str, tool_image: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}},
    }
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]
    mounts = [{"name": "models", "mountPath": "/data"}]
    cluster.apply(claim)
    for name, script in (("writes", "echo weights > /data/file"), ("reads", "grep weights /data/file")):
        container = _container(tool_image, "sh", "-c", script, volumeMounts=mounts)
        manifest = _pod(name, container, volumes=volumes, restartPolicy="Never")
        manifest["metadata"]["namespace"] = namespace
        cluster.apply(manifest)
        done = "--for=jsonpath={.status.phase}=Succeeded"
        cluster.kubectl("wait", done, f"pod/{name}", "-n", namespace, "--timeout=60s")
    assert cluster.get("pvc", "models", "-n", namespace)["spec"]["storageClassName"] == STORAGE_CLASS


def test_pods_may_not_use_the_api_beyond_what_they_are_granted(cluster: Any, namespace: str) -> None:
    account = f"system:serviceaccount:{namespace}:default"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": {"verb": "list", "resource": "secrets"}},
    }
    answer = json.loads(cluster.kubectl("create", "-f", "-", "-o", "json", input_text=json.dumps(review)))
    assert not answer["status"]["allowed"]
