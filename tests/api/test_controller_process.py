"""The operator as a process: it starts, says how it is, ends in good order, and loses nothing when it is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devcluster import apiserver as instances

pytestmark = pytest.mark.api
CRD = Path(__file__).parents[2] / "crds" / "llmdeployments.trimtab.dev.yaml"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _start(kubeconfig: Path, port: int, **variables: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "TRIMTAB_KUBECONFIG": str(kubeconfig),
        "TRIMTAB_WEB_PORT": str(port),
        "TRIMTAB_WEB_HOST": "127.0.0.1",
        "TRIMTAB_WATCH_NODES": "false",
        **variables,
    }
    command = [sys.executable, "-m", "trimtab.controller"]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


@contextmanager
def _running(kubeconfig: Path, port: int, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = _start(kubeconfig, port, **variables)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def _get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def _until(check: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


def _install(server: Any) -> None:
    server.kubectl("apply", "--server-side", "-f", str(CRD))
    server.kubectl("wait", "--for=condition=Established", "crd/llmdeployments.trimtab.dev", "--timeout=60s")


def _apply(server: Any, namespace: str, count: int) -> None:
    manifests = [
        {
            "apiVersion": "trimtab.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": f"chat-{index}", "namespace": namespace},
            "spec": {"model": {"id": "meta-llama/Llama-3.1-8B-Instruct"}},
        }
        for index in range(count)
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    server.kubectl("apply", "--server-side", "-f", "-", input_text=text)


def _deployments(server: Any, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.kubectl("get", "deployments", "-n", namespace, "-o", "json"))[
        "items"
    ]
    return found


def test_it_gets_ready_serves_metrics_and_ends_in_good_order(apiserver: Any) -> None:
    _install(apiserver)
    namespace, port = f"p-{uuid.uuid4().hex[:8]}", _free_port()
    apiserver.kubectl("create", "namespace", namespace)
    with _running(apiserver.kubeconfig, port, TRIMTAB_NAMESPACES=namespace) as process:
        _until(lambda: _get(port, "/readyz")[0] == 200)
        _apply(apiserver, namespace, 1)
        _until(lambda: len(_deployments(apiserver, namespace)) == 1)
        _until(lambda: "trimtab_reconcile_total" in _get(port, "/metrics")[1])
        assert _get(port, "/healthz") == (200, "ok")
        text = _get(port, "/metrics")[1]
        assert 'trimtab_api_requests_total{code="201",kind="Deployment",verb="apply"} 1.0' in text
        assert "trimtab_queue_depth" in text
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    lines = [json.loads(line) for line in log.splitlines()]
    assert lines[-1]["message"] == "stopped"
    assert not [line for line in lines if "Traceback" in json.dumps(line)]


def test_killed_at_any_moment_it_loses_nothing_and_does_nothing_twice(apiserver: Any) -> None:
    _install(apiserver)
    namespace = f"p-{uuid.uuid4().hex[:8]}"
    apiserver.kubectl("create", "namespace", namespace)
    _apply(apiserver, namespace, 10)
    slow = {"TRIMTAB_NAMESPACES": namespace, "TRIMTAB_API_QUERIES_PER_SECOND": "15", "TRIMTAB_API_BURST": "1"}
    for seconds in (0.5, 1.0, 1.5):
        port = _free_port()
        with _running(apiserver.kubeconfig, port, **slow) as process:
            _until(lambda port=port: _get(port, "/readyz")[0] == 200)  # type: ignore[misc]
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
    port = _free_port()
    with _running(apiserver.kubeconfig, port, TRIMTAB_NAMESPACES=namespace):
        _until(lambda: len(_deployments(apiserver, namespace)) == 10)

        def planned() -> bool:
            listing = json.loads(apiserver.kubectl("get", "llmd", "-n", namespace, "-o", "json"))["items"]
            return all(item.get("status", {}).get("plan") for item in listing)

        _until(planned)
    # Applied twice, a Deployment would have a second generation.
    assert {item["metadata"]["generation"] for item in _deployments(apiserver, namespace)} == {1}


def test_without_the_crd_it_waits_and_says_so() -> None:
    name = f"t{uuid.uuid4().hex[:6]}"
    port = _free_port()
    try:
        bare = instances.up(name)
        with _running(bare.kubeconfig, port):
            _until(lambda: "llmdeployments.trimtab.dev is not installed" in _get(port, "/readyz")[1])
            assert _get(port, "/readyz")[0] == 503
            assert _get(port, "/healthz")[0] == 200
    finally:
        instances.down(name)


def test_wrong_settings_end_it_at_once_with_a_sentence() -> None:
    process = _start(Path("/nonexistent"), 0, TRIMTAB_RESYNC_SECONDS="often")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "TRIMTAB_RESYNC_SECONDS" in log
    assert "'often'" in log


def test_it_never_uses_the_ambient_kubeconfig(tmp_path: Path, apiserver: Any) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(apiserver.kubeconfig)}
    command = [sys.executable, "-m", "trimtab.controller"]
    process = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60, check=False)
    assert process.returncode == 2
    assert "TRIMTAB_KUBECONFIG" in process.stderr
