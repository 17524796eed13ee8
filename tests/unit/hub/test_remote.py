"""What is said when the Hub answers, refuses or does not answer: against a server on the loopback."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trimtab.hub.remote import HubAccess, HubError, fetch_model

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 128,
}  # fmt: skip
REFUSALS = {
    "gated/model": (401, "GatedRepo"),
    "no/model": (404, "RepoNotFound"),
    "old/model": (404, "RevisionNotFound"),
    "bare/model": (404, "EntryNotFound"),
    "broken/model": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does, by repository name."""

    def do_GET(self) -> None:
        repository = "/".join(self.path.split("/")[1:3])
        status, code = REFUSALS.get(repository, (200, ""))
        body = json.dumps(CONFIG if repository != "prose/model" else "hello").encode()
        if not self.path.endswith("config.json"):
            status = 404
        if repository == "slow/model":
            time.sleep(1.0)
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_config_json_becomes_facts(hub: str) -> None:
    facts = fetch_model("acme/model", access=HubAccess(endpoint=hub))
    assert facts.id == "acme/model"
    assert facts.hidden_size == 64


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("gated/model", "give a token"),
        ("no/model", "check the name"),
        ("old/model", "no revision"),
        ("bare/model", "no config.json"),
        ("broken/model", "did not answer"),
        ("prose/model", "no object"),
    ],
)
def test_a_refusal_says_what_to_do(hub: str, repository: str, words: str) -> None:
    with pytest.raises(HubError, match=words):
        fetch_model(repository, "v9", HubAccess(endpoint=hub))


def test_a_silent_hub_costs_one_time_out(hub: str) -> None:
    with pytest.raises(HubError, match="use --model-config"):
        fetch_model("slow/model", access=HubAccess(endpoint=hub, timeout_seconds=0.1))


def test_offline_asks_nobody() -> None:
    with pytest.raises(HubError, match="offline and not in the local cache"):
        fetch_model("acme/never-cached", access=HubAccess(offline=True, endpoint="http://127.0.0.1:1"))
