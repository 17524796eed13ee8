"""The local cluster does what the product and its tests rely on."""

import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"served")
http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
SLEEP = "import time; time.sleep(3600)"


def test_a_service_is_reached_by_name_from_pods_and_by_address_from_the_host(
    cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    pod(SERVER, "server")
    pod(SLEEP, "client")
    ports = [{"port": 80, "targetPort": 8080}]
    metadata = {"name": "server", "namespace": namespace}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "server"}, "ports": ports},
        }
    )
    script = f"import urllib.request; print(urllib.request.urlopen('http://server.{namespace}.svc', timeout=5).read())"

    def asked() -> bool:
        try:
            return "served" in cluster.kubectl("exec", "client", "-n", namespace, "--", "python3", "-c", script)
        except subprocess.CalledProcessError:
            return False

    cluster.wait("the Service answers by name", asked, 30)
    address = cluster.get("service", "server", namespace)["spec"]["clusterIP"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(f"http://{address}/", timeout=5).read() == b"served"


def test_a_changed_config_map_reaches_the_pod_soon_after_its_annotation_changes(
    cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    def config(value: str) -> dict[str, Any]:
        metadata = {"name": "live", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": value}}

    cluster.apply(config("before"))
    mount = {"volumeMounts": [{"name": "live", "mountPath": "/live"}]}
    name = pod(SLEEP, container=mount, volumes=[{"name": "live", "configMap": {"name": "live"}}])
    cluster.apply(config("after"))
    cluster.kubectl("annotate", "pod", name, "-n", namespace, "trimtab.dev/live-revision=2")
    started = time.monotonic()
    read = ("exec", name, "-n", namespace, "--", "python3", "-c", "print(open('/live/value').read())")
    # Without the annotation the kubelet takes up to a minute; the bound here only tells the two apart.
    cluster.wait("the new value", lambda: "after" in cluster.kubectl(*read), 20)
    print(f"seen {time.monotonic() - started:.1f} s after the annotation")


def test_the_scheduler_counts_the_simulated_gpus(cluster: Any, namespace: str, pod: Callable[..., str]) -> None:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": "8"}}}
    pod(SLEEP, "all-gpus", container=gpus)
    waiting = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one-more", "namespace": namespace},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "localhost/trimtab/addons:dev",
                    "imagePullPolicy": "Never",
                    "command": ["true"],
                    "resources": {"limits": {"nvidia.com/gpu": "1"}},
                }
            ]
        },
    }
    cluster.apply(waiting)

    def unschedulable() -> bool:
        conditions = cluster.get("pod", "one-more", namespace)["status"].get("conditions", [])
        return any(c.get("reason") == "Unschedulable" and "nvidia.com/gpu" in c["message"] for c in conditions)

    cluster.wait("the ninth GPU is refused", unschedulable, 30)


def test_a_native_sidecar_outlives_the_main_container_while_it_drains(
    cluster: Any, namespace: str, pod: Callable[..., str]
) -> None:
    drain = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), sys.exit()))\n"
    sidecar = {
        "name": "sidecar",
        "image": "localhost/trimtab/addons:dev",
        "imagePullPolicy": "Never",
        "restartPolicy": "Always",
        "command": ["python3", "-u", "-c", SERVER],
    }
    name = pod(drain + SLEEP, initContainers=[sidecar])
    address = cluster.get("pod", name, namespace)["status"]["podIP"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def served() -> bool:
        try:
            return bool(opener.open(f"http://{address}:8080/", timeout=5).read() == b"served")
        except OSError:
            return False

    cluster.wait("the sidecar listens", served, 30)
    cluster.kubectl("delete", "pod", name, "-n", namespace, "--wait=false", "--grace-period=20")
    time.sleep(1.5)
    assert served()
    cluster.wait("the pod is gone", lambda: cluster.get("pod", name, namespace) is None, 30)
