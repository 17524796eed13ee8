"""The local cluster does what the product and its tests rely on: each test holds one such thing."""

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

GPU = "nvidia.com/gpu"
SLEEP = "import time; time.sleep(3600)"
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"served")
http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
LISTENS = {"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}


def _fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_a_restricted_pod_is_really_confined(bare_cluster: Any, namespace: str, pod: Callable[..., str]) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    bare_cluster.kubectl("label", "namespace", namespace, enforce)
    name = pod(SLEEP)
    status = bare_cluster.kubectl("exec", name, "-n", namespace, "--", "cat", "/proc/self/status")
    facts = {key: value.split() for key, value in (line.split(":", 1) for line in status.splitlines())}
    assert facts["Uid"][0] == "65532"
    assert int(facts["CapEff"][0], 16) == 0
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"], "2 is filter mode"
    write = ("exec", name, "-n", namespace, "--", "sh", "-c", "touch /x || echo refused")
    assert "refused" in bare_cluster.kubectl(*write)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        pod(SLEEP, "wrong", container={"securityContext": {"privileged": True}})
    assert "violates PodSecurity" in refused.value.__notes__[0]


def test_a_service_answers_from_the_host_and_by_name_in_pods(
    bare_cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    pod(SERVER, "server", container=LISTENS)
    pod(SLEEP, "client")
    metadata = {"name": "site", "namespace": namespace}
    spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}
    bare_cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    address = bare_cluster.get("service", "site", namespace)["spec"]["clusterIP"]

    def answer_on_host() -> str:
        # kube-proxy refuses connections until it has learnt of the pod, a moment after the pod is ready.
        with contextlib.suppress(urllib.error.URLError):
            return _fetch(f"http://{address}/")
        return ""

    assert bare_cluster.wait("the Service answers", answer_on_host) == "served"
    for pod_name in ("client", "server"):
        for host in ("site", f"site.{namespace}.svc", f"site.{namespace}.svc.cluster.local", address):
            code = f"import urllib.request as u; print(u.urlopen('http://{host}/', timeout=10).read().decode())"
            answer = bare_cluster.kubectl("exec", pod_name, "-n", namespace, "--", "python3", "-c", code)
            assert answer.strip() == "served", (pod_name, host)


def test_logs_and_port_forward_reach_the_pod(bare_cluster: Any, namespace: str, pod: Callable[..., str]) -> None:
    name = pod(SERVER, "server", container=LISTENS)
    command = bare_cluster.command("port-forward", f"pod/{name}", ":8080", "-n", namespace, "--address=127.0.0.1")
    with _running(command) as process:
        port = process.stdout.readline().split("127.0.0.1:")[1].split()[0]
        assert _fetch(f"http://127.0.0.1:{port}/?forwarded") == "served"
    bare_cluster.wait("the log", lambda: "GET /?forwarded" in bare_cluster.kubectl("logs", name, "-n", namespace))


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[Any]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=10)


def test_a_changed_config_map_reaches_the_pod_once_an_annotation_is_patched(
    bare_cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    def config(value: str) -> dict[str, Any]:
        metadata = {"name": "live", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": value}}

    bare_cluster.apply(config("0"))
    mount = {"volumeMounts": [{"name": "live", "mountPath": "/live"}]}
    name = pod(SLEEP, container=mount, volumes=[{"name": "live", "configMap": {"name": "live"}}])
    for revision in ("1", "2", "3"):
        started = time.monotonic()
        bare_cluster.apply(config(revision))
        bare_cluster.kubectl("annotate", "pod", name, f"example.org/live={revision}", "-n", namespace, "--overwrite")
        read = ("exec", name, "-n", namespace, "--", "cat", "/live/value")
        # Left alone, the kubelet looks again after 60 to 90 s: the bound tells the two apart.
        bare_cluster.wait("the new value", lambda r=revision, read=read: bare_cluster.kubectl(*read) == r, 20)
        print(f"revision {revision} was in the pod {time.monotonic() - started:.2f} s after the write began")


def _free_gpus(cluster: Any) -> int:
    offered = int(cluster.get("node", NODE)["status"]["allocatable"][GPU])
    pods = cluster.items("pods", "default", "-A", "--field-selector=status.phase!=Succeeded,status.phase!=Failed")
    containers = [container for pod in pods if pod["spec"].get("nodeName") for container in pod["spec"]["containers"]]
    return offered - sum(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) for c in containers)


def test_the_scheduler_counts_the_gpus(bare_cluster: Any, namespace: str, pod: Callable[..., str]) -> None:
    free = _free_gpus(bare_cluster)
    quick = {"terminationGracePeriodSeconds": 0}
    pod(SLEEP, "fits", container={"resources": {"limits": {GPU: str(free)}}}, **quick)
    pod(SLEEP, "waits", until=None, container={"resources": {"limits": {GPU: "1"}}}, **quick)

    def refusal() -> str:
        conditions = bare_cluster.get("pod", "waits", namespace)["status"].get("conditions", [])
        return next((c["message"] for c in conditions if c.get("reason") == "Unschedulable"), "")

    assert f"Insufficient {GPU}" in bare_cluster.wait("the refusal", refusal)
    bare_cluster.kubectl("delete", "pod", "fits", "-n", namespace, "--now")
    bare_cluster.kubectl("wait", "--for=condition=Ready", "pod/waits", "-n", namespace, "--timeout=60s")


def test_the_gpus_outlive_the_kubelets_own_reports(bare_cluster: Any) -> None:
    def heartbeat() -> str:
        conditions = bare_cluster.get("node", NODE)["status"]["conditions"]
        return str(next(c["lastHeartbeatTime"] for c in conditions if c["type"] == "Ready"))

    first = heartbeat()
    bare_cluster.wait("a report of the kubelet", lambda: heartbeat() != first)
    node = bare_cluster.get("node", NODE)
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
MAIN = """
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(2)
    pathlib.Path("/shared/ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
time.sleep(3600)
"""


def test_a_native_sidecar_starts_first_and_ends_last(
    bare_cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    mounts = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    sidecar = {
        "name": "sidecar",
        "image": "localhost/trimtab/addons:dev",
        "imagePullPolicy": "Never",
        "restartPolicy": "Always",
        "command": ["python3", "-u", "-c", SIDECAR],
        "securityContext": {"runAsUser": 65532},
        "lifecycle": {"preStop": {"exec": {"command": ["touch", "/shared/hook"]}}},
        **mounts,
    }
    name = pod(MAIN, container=mounts, initContainers=[sidecar], volumes=[{"name": "shared", "emptyDir": {}}])
    command = bare_cluster.command("logs", name, "-c", "sidecar", "-n", namespace, "--follow")
    with _running(command) as process:
        assert process.stdout.readline().strip() == "sidecar runs"
        bare_cluster.kubectl("delete", "pod", name, "-n", namespace)
        lines = process.stdout.read().splitlines()
    # The hook runs as soon as the pod is deleted; the signal waits for the main container.
    assert lines == ["hook ran; main has ended: False", "told to end; main has ended: True"]


def test_a_claim_binds_and_holds_what_a_plain_user_writes(
    bare_cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}},
    }
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]
    mounts = {"volumeMounts": [{"name": "models", "mountPath": "/data"}]}
    bare_cluster.apply(claim)
    for name, script in (("writes", "print('w', file=open('/data/f', 'w'))"), ("reads", "open('/data/f')")):
        done = "jsonpath={.status.phase}=Succeeded"
        pod(script, name, until=done, container=mounts, volumes=volumes, restartPolicy="Never")
    assert bare_cluster.get("pvc", "models", namespace)["spec"]["storageClassName"] == STORAGE_CLASS


def test_pods_may_not_use_the_api_beyond_what_they_are_granted(bare_cluster: Any, namespace: str) -> None:
    account = f"system:serviceaccount:{namespace}:default"
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": {"verb": "list", "resource": "secrets"}},
    }
    answer = json.loads(bare_cluster.kubectl("create", "-f", "-", "-o", "json", input_text=json.dumps(review)))
    assert not answer["status"]["allowed"]
