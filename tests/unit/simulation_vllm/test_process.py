import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from trimtab.engines.vllm import VllmEngine

COMMAND = [sys.executable, "-m", "trimtab.simulation.vllm", "serve"]
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def process():
    """Start the server as a process; it is stopped at the end."""
    started = []

    def start(args: str):
        variables = {**os.environ, "TRIMTAB_SIM_GPU": "H200", "TRIMTAB_SIM_BOOT_SECONDS": "0.1"}
        port = free_port()
        command = [
            *COMMAND,
            MODEL,
            "--max-model-len",
            "2048",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *args.split(),
        ]
        running = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(running)
        return running, f"http://127.0.0.1:{port}"

    yield start
    for running in started:
        if running.poll() is None:
            running.kill()
        running.communicate()


def serving(process, args: str = ""):
    running, url = process(args)
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return running, url
        except urllib.error.URLError:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.1)
    raise AssertionError("the port never opened")


def ask(url: str, path: str, **body):
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=120)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


def series(url: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in get(f"{url}/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def labelled(name: str, more: str = "") -> str:
    return f'{name}{{engine="0",{more}model_name="{MODEL}"}}'


def test_answers_streamed_and_whole_agree_and_are_counted(process):
    _, url = serving(process)
    assert json.loads(get(f"{url}/version")) == {"version": "0.11.0"}
    entry = json.loads(get(f"{url}/v1/models"))["data"][0]
    assert (entry["id"], entry["max_model_len"]) == (MODEL, 2048)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "temperature": 0}
    whole = json.load(ask(url, "/v1/chat/completions", **body))
    assert whole["usage"]["completion_tokens"] == 20
    assert whole["choices"][0]["finish_reason"] == "length"
    with ask(url, "/v1/chat/completions", **body, stream=True, stream_options={"include_usage": True}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = [line[6:] for line in response.read().decode().splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(chunks) == 1 + 20 + 1, "the role, the tokens, the counts"
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    several = json.load(ask(url, "/v1/completions", model=MODEL, prompt=["a", "b c"], max_tokens=3, n=2))
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["usage"]["completion_tokens"] == 12
    found = series(url)
    assert found[labelled("vllm:request_success_total", 'finished_reason="length",')] == 6
    assert found[labelled("vllm:generation_tokens_total")] == 52
    assert found[labelled("vllm:inter_token_latency_seconds_count")] == 52 - 6
    assert found[labelled("vllm:e2e_request_latency_seconds_count")] == 6
    assert found[labelled("vllm:num_requests_running")] == 0
    assert found[labelled("vllm:kv_cache_usage_perc")] == 0


def test_every_metric_that_the_operator_reads_is_there_from_the_start(process):
    _, url = serving(process)
    names = {name.partition("{")[0] for name in series(url)}
    for metric in VllmEngine().metrics.values():
        assert {metric.name, f"{metric.name}_count"} & names, metric.name


def test_errors_are_answered_as_vllm_does(process):
    _, url = serving(process, "--served-model-name small --api-key secret")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(url, "/v1/completions", prompt="a")
    for body, status in (({"model": MODEL, "prompt": "a"}, 404), ({"model": "small", "prompt": "w " * 3000}, 400)):
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), {"Authorization": "Bearer secret"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert (caught.value.code, json.load(caught.value)["error"]["code"]) == (status, status)


def test_wrong_arguments_end_with_2_and_impossible_ones_with_1(process):
    usage, _ = process("--no-such-flag")
    assert "unrecognized arguments: --no-such-flag" in usage.communicate(timeout=60)[1]
    assert usage.returncode == 2
    failure, _ = process("--tensor-parallel-size 3")
    assert "Engine core initialization failed" in failure.communicate(timeout=60)[1]
    assert failure.returncode == 1


@pytest.mark.parametrize("limit", [2, 6])
def test_max_num_seqs_bounds_how_many_run_together(process, limit):
    _, url = serving(process, f"--max-num-seqs {limit}")
    with ThreadPoolExecutor(6) as pool:
        calls = [
            pool.submit(lambda: json.load(ask(url, "/v1/completions", model=MODEL, prompt="a", max_tokens=400)))
            for _ in range(6)
        ]
        seen = []
        while not all(call.done() for call in calls):
            found = series(url)
            seen.append((found[labelled("vllm:num_requests_running")], found[labelled("vllm:num_requests_waiting")]))
        assert all(call.result()["usage"]["completion_tokens"] == 400 for call in calls)
    assert max(running for running, _ in seen) == limit
    assert max(waiting for _, waiting in seen) >= 6 - limit


def test_a_client_that_leaves_frees_its_place(process):
    _, url = serving(process)
    with ask(url, "/v1/completions", model=MODEL, prompt="a", max_tokens=2000, stream=True) as response:
        response.readline()
    for _ in range(300):
        found = series(url)
        if found[labelled("vllm:request_success_total", 'finished_reason="abort",')] == 1:
            break
        time.sleep(0.02)
    assert found[labelled("vllm:request_success_total", 'finished_reason="abort",')] == 1
    assert found[labelled("vllm:num_requests_running")] == 0


def test_the_server_needs_only_the_simulators_extra():
    """Its image carries the base dependencies and the `simulator` extra, nothing else."""
    elsewhere = "numpy kopf kubernetes rich huggingface_hub tokenizers redis prometheus_api_client"
    program = (
        f"import sys\nsys.modules |= dict.fromkeys({elsewhere!r}.split())\nimport trimtab.simulation.vllm.__main__\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_sigterm_breaks_off_what_runs(process):
    running, url = serving(process)
    with ask(url, "/v1/completions", model=MODEL, prompt="a", max_tokens=2000, stream=True) as response:
        response.readline()
        running.send_signal(signal.SIGTERM)
        with pytest.raises((HTTPException, ConnectionError)):
            response.read()
    running.communicate(timeout=60)
    assert running.returncode == 0
