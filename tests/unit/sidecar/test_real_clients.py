"""What users' own clients get is the same with and without the sidecar, at the first time and from the cache.

The engine is the simulated TGI server, the clients are those people use: openai, huggingface_hub, text-generation.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import openai
import pytest
import text_generation

MODEL = "Qwen/Qwen2.5-7B-Instruct"
VOLATILE = {"created"}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def started(command: list[str], port: int, log: Path, **env: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env})
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return process
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """(engine, sidecar)."""
    folder = tmp_path_factory.mktemp("clients")
    engine_port, port = free_port(), free_port()
    module = [sys.executable, "-m", "trimtab.simulation.server", "--model-id", MODEL, "--port", str(engine_port)]
    engine = started(module, engine_port, folder / "engine.log", TRIMTAB_SIM_BOOT_SECONDS="0")
    config = {
        "upstream": f"http://127.0.0.1:{engine_port}",
        "identity": {"model": MODEL},
        "listen": {"host": "127.0.0.1", "port": port, "metricsPort": free_port()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "trimtab.sidecar"]
    sidecar = started(command, port, folder / "sidecar.log", TRIMTAB_SIDECAR_CONFIG=str(folder))
    yield engine_port, port
    stopped(sidecar)
    stopped(engine)


def plain(value: Any) -> Any:
    """What a client returned, as plain data without what differs between any two calls."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif hasattr(value, "__dataclass_fields__"):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in VOLATILE}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def outcome(call: Callable[[], Any]) -> Any:
    """The result, or class, status and text of the error."""
    try:
        result = call()
        if (
            not isinstance(result, str | dict | list)
            and hasattr(result, "__iter__")
            and not hasattr(result, "model_dump")
        ):
            result = list(result)
    except Exception as error:  # noqa: BLE001 - any error of a client is an outcome to compare
        response = getattr(error, "response", None)
        return (
            type(error).__name__,
            getattr(response, "status_code", None),
            str(getattr(error, "body", "")),
            str(error)[:60],
        )
    return plain(result)


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où est la gare? 駅はどこ?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def openai_client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)


def chat(**parameters: Any) -> Callable[[int], Any]:
    settings: dict[str, Any] = {"model": "tgi", "messages": MESSAGES, "max_tokens": 8, "temperature": 0} | parameters
    return lambda port: openai_client(port).chat.completions.create(**settings)


def completion(**parameters: Any) -> Callable[[int], Any]:
    settings: dict[str, Any] = {"model": "tgi", "prompt": "Say hi", "max_tokens": 8, "temperature": 0} | parameters
    return lambda port: openai_client(port).completions.create(**settings)


def hub(**parameters: Any) -> Callable[[int], Any]:
    settings: dict[str, Any] = {"prompt": "Tell a story", "max_new_tokens": 8, "do_sample": False} | parameters
    return lambda port: huggingface_hub.InferenceClient(f"http://127.0.0.1:{port}").text_generation(**settings)


def hub_chat(**parameters: Any) -> Callable[[int], Any]:
    settings: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0} | parameters
    return lambda port: huggingface_hub.InferenceClient(f"http://127.0.0.1:{port}").chat_completion(**settings)


def native(method: str = "generate", **parameters: Any) -> Callable[[int], Any]:
    settings: dict[str, Any] = {"prompt": "Tell a tale", "max_new_tokens": 8} | parameters
    return lambda port: getattr(text_generation.Client(f"http://127.0.0.1:{port}"), method)(**settings)


MATRIX: dict[str, Callable[[int], Any]] = {
    "openai chat": chat(),
    "openai chat seeded": chat(temperature=0.7, seed=3),
    "openai chat stop": chat(stop=["a"]),
    "openai chat logprobs": chat(logprobs=True, top_logprobs=2),
    "openai chat penalties": chat(frequency_penalty=0.5, presence_penalty=0.1),
    "openai chat tools": chat(tools=[TOOL], tool_choice="auto"),
    "openai chat forced tool": chat(
        tools=[TOOL], tool_choice={"type": "function", "function": {"name": "get_weather"}}
    ),
    "openai chat schema": chat(
        response_format={"type": "json_object", "value": {"type": "object", "properties": {"a": {"type": "string"}}}}
    ),
    "openai chat stream": chat(stream=True),
    "openai chat stream usage": chat(stream=True, stream_options={"include_usage": True}),
    "openai chat stream tools": chat(stream=True, tools=[TOOL], tool_choice="required"),
    "openai chat too long": chat(messages=[{"role": "user", "content": "word " * 60_000}]),
    "openai chat no messages": chat(messages=[]),
    "openai completion": completion(),
    "openai completion two prompts": completion(prompt=["a", "b"]),
    "openai completion stream": completion(stream=True),
    "openai completion suffix": completion(suffix="x"),
    "openai models": lambda port: openai_client(port).models.list().data,
    "hub text": hub(),
    "hub text details": hub(details=True, decoder_input_details=True),
    "hub text stream": hub(stream=True),
    "hub text stream details": hub(stream=True, details=True),
    "hub text seeded": hub(do_sample=True, seed=5, temperature=0.9, top_p=0.9),
    "hub text grammar": hub(grammar={"type": "regex", "value": "[0-9]+"}),
    "hub text invalid": hub(top_n_tokens=99),
    "hub chat": hub_chat(),
    "hub chat stream": hub_chat(stream=True),
    "text-generation": native(),
    "text-generation details": native(decoder_input_details=True, top_n_tokens=2),
    "text-generation stop": native(stop_sequences=["e"]),
    "text-generation best of": native(best_of=2, do_sample=True, temperature=0.5),
    "text-generation truncate": native(truncate=3, repetition_penalty=1.2, typical_p=0.9, watermark=True, seed=1),
    "text-generation stream": native("generate_stream"),
    "text-generation too long": native(prompt="word " * 60_000),
}
SAMPLED = {"text-generation best of"}  # the engine itself answers differently each time


@pytest.mark.parametrize("name", MATRIX)
def test_a_client_gets_the_same_with_and_without_the_sidecar(name: str, ports: tuple[int, int]) -> None:
    engine, sidecar = ports
    call = MATRIX[name]
    direct, first, second = (outcome(lambda port=port: call(port)) for port in (engine, sidecar, sidecar))
    if name in SAMPLED:
        assert sorted(direct) == sorted(first) == sorted(second)
        return
    assert first == direct
    assert second == direct


def test_errors_of_streams_have_a_status_with_the_sidecar_only(ports: tuple[int, int]) -> None:
    """Without it the client sees 200 and an event: the one difference that is meant."""
    engine, sidecar = ports
    call = chat(stream=True, messages=[{"role": "user", "content": "word " * 60_000}])
    with pytest.raises(openai.APIError) as direct:
        list(call(engine))
    assert not isinstance(direct.value, openai.APIStatusError)
    with pytest.raises(openai.UnprocessableEntityError) as through:
        list(call(sidecar))
    assert "must have less than" in str(through.value) or "validation" in str(through.value)
    tale = native("generate_stream", prompt="word " * 60_000)
    errors = [outcome(lambda port=port: tale(port))[0] for port in ports]
    assert errors[0] == errors[1] == "ValidationError"
