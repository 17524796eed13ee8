import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

COMMAND = [sys.executable, "-m", "trimtab.simulation.server"]
FLAGS = "--model-id meta-llama/Llama-3.1-8B-Instruct --max-total-tokens 2048 --prometheus-port 0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def process():
    """Start the server as a process; it is stopped at the end."""
    started = []

    def start(args: str, **env: str):
        variables = {**os.environ, "TRIMTAB_SIM_GPU": "H200", "TRIMTAB_SIM_BOOT_SECONDS": "0.1", **env}
        port = free_port()
        command = [*COMMAND, *FLAGS.split(), "--hostname", "127.0.0.1", "--port", str(port), *args.split()]
        running = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(running)
        return running, f"http://127.0.0.1:{port}"

    yield start
    for running in started:
        if running.poll() is None:
            running.kill()
        running.communicate()


def wait_until_healthy(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError("the port never opened")


def test_exit_codes_tell_usage_from_other_errors(process):
    usage, _ = process("--no-such-flag")
    assert "unexpected argument" in usage.communicate(timeout=60)[1]
    assert usage.returncode == 2
    failure, _ = process("--num-shard 3")
    assert "ShardCannotStart" in failure.communicate(timeout=60)[1]
    assert failure.returncode == 1
    unknown, _ = process("", TRIMTAB_SIM_GPU="GTX-480")
    assert "GTX-480" in unknown.communicate(timeout=60)[1]
    assert unknown.returncode == 1


def test_sigterm_lets_open_requests_finish_and_closes_the_port(process):
    running, url = process("")
    wait_until_healthy(url)
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 150}}).encode()
    request = urllib.request.Request(f"{url}/generate_stream", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        response.readline()
        running.send_signal(signal.SIGTERM)
        time.sleep(0.4)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/health", timeout=5)
        events = [line for line in response.read().decode().splitlines() if line.startswith("data:")]
    assert len(events) == 149, "the whole answer arrives, but for the first event, which was read before"
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "Setting max batch total tokens to" in out


def test_a_dead_shard_ends_the_process(process):
    running, url = process("", TRIMTAB_SIM_CRASH_AFTER_PASSES="3")
    wait_until_healthy(url)
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 50}}).encode()
    request = urllib.request.Request(f"{url}/generate", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="424"):
        urllib.request.urlopen(request, timeout=60)
    running.communicate(timeout=60)
    assert running.returncode == 1
