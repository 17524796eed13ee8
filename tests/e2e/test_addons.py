"""Prometheus finds the pods that Trimtab runs and names their series as the operator asks for them; Redis answers."""

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from devcluster import cluster as local

pytestmark = pytest.mark.e2e

METRICS = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        port = self.server.server_address[1]
        self.send_response(200); self.send_header("Content-Type", "text/plain"); self.end_headers()
        self.wfile.write(f"asked_port {port}\\n".encode())
import threading
for port in (9100, 8000, 8080):
    server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler)
    threading.Thread(target=server.serve_forever).start()
"""


@pytest.fixture(scope="module")
def addons(bare_cluster: Any) -> Any:
    """The cluster with Prometheus and Redis."""
    if bare_cluster.folder is not None:
        local.start_addons()
    return bare_cluster


def _series(cluster: Any, query: str) -> list[dict[str, Any]]:
    address = cluster.get("service", "prometheus", "monitoring")["spec"]["clusterIP"]
    url = f"http://{address}:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def test_prometheus_scrapes_the_named_ports_and_labels_what_it_finds(
    addons: Any, namespace: str, pod: Callable[..., str]
) -> None:
    names = {"metrics": 9100, "engine": 8000, "http": 8080}
    ports = [{"name": name, "containerPort": number} for name, number in names.items()]
    pod(METRICS, "seen", container={"ports": ports}, labels={"trimtab.dev/deployment": "chat"})
    pod(METRICS, "unseen", container={"ports": ports})
    query = f'asked_port{{namespace="{namespace}"}}'

    def found() -> list[dict[str, Any]]:
        series = _series(addons, query)
        return series if len(series) >= 2 else []

    series = addons.wait("both ports in Prometheus", found)
    assert sorted(int(float(one["value"][1])) for one in series) == [8000, 9100], "`http` is for clients"
    for one in series:
        labels = one["metric"]
        assert (labels["namespace"], labels["pod"], labels["llmdeployment"]) == (namespace, "seen", "chat")


def test_prometheus_may_only_read_pods(addons: Any) -> None:
    account = "--as=system:serviceaccount:monitoring:prometheus"
    for verb, kind, allowed in (("list", "pods", "yes"), ("list", "secrets", "no"), ("delete", "pods", "no")):
        words = addons.command("auth", "can-i", verb, kind, account, "-A")
        assert _first_word(words) == allowed, (verb, kind)


def _first_word(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[0]


def test_redis_stores_and_returns(addons: Any) -> None:
    address = addons.get("service", "redis", "monitoring")["spec"]["clusterIP"]
    with socket.create_connection((address, 6379), timeout=10) as connection:
        connection.sendall(b"SET probe 1 EX 5\r\nGET probe\r\n")
        answer = b""
        while answer.count(b"\r\n") < 3:
            answer += connection.recv(100)
    assert answer == b"+OK\r\n$1\r\n1\r\n"
