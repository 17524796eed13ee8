import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from trimtab.telemetry.observe import Telemetry, assemble
from trimtab.telemetry.prometheus import Prometheus, PrometheusSettings, TelemetryUnavailableError
from trimtab.telemetry.queries import Labels, tick_queries

LABELS = Labels()
HERE = {"namespace": "team", "llmdeployment": "chat"}


def sample(value: str, **labels: str) -> dict[str, Any]:
    return {"metric": {**HERE, **labels}, "value": [0, value]}


def test_without_any_series_there_is_no_observation() -> None:
    assert assemble({name: [] for name in tick_queries(LABELS, 60)}, LABELS, 1.0, 60.0) == {}


def test_what_was_not_measured_is_none_and_not_zero() -> None:
    (seen,) = assemble({"age": [sample("3")]}, LABELS, 7.0, 60.0).values()
    assert (seen.time, seen.age_s) == (7.0, 3.0)
    for name in ("arrivals_per_s", "in_flight", "queued", "tpot_mean", "hit_ratio", "step_s", "pods_reporting"):
        assert getattr(seen, name) is None
    assert seen.ttft.p95 is None


def test_requests_are_told_apart_by_cache_and_code() -> None:
    answers = {
        "requests": [
            sample("6", code="200", cache="miss"),
            sample("2", code="200", cache="hit"),
            sample("1", code="200", cache="coalesced"),
            sample("0.5", code="429", cache="miss"),
            sample("0.25", code="502", cache="bypass"),
            sample("0.25", code="200", cache="bypass"),
        ],
        "held_change": [sample("120")],
    }
    (seen,) = assemble(answers, LABELS, 0.0, 60.0).values()
    assert seen.served_per_s == pytest.approx(6.25)
    assert seen.hit_ratio == pytest.approx(0.3)
    assert (seen.rejected_per_s, seen.errors_per_s) == (0.5, 0.25)
    assert seen.arrivals_per_s == pytest.approx(10 + 2), "those that are still held have arrived too"


def test_nan_and_infinity_count_as_not_measured() -> None:
    answers = {"step": [sample("NaN")], "in_flight": [sample("+Inf")], "queued": [sample("2")]}
    (seen,) = assemble(answers, LABELS, 0.0, 60.0).values()
    assert (seen.step_s, seen.in_flight, seen.queued) == (None, None, 2.0)


def test_percentiles_and_means_come_from_one_histogram() -> None:
    buckets = [sample("0", le="0.1"), sample("4", le="0.2"), sample("5", le="0.4"), sample("5", le="+Inf")]
    (seen,) = assemble({"ttft_buckets": buckets, "ttft_sum": [sample("0.9")]}, LABELS, 0.0, 60.0).values()
    assert seen.ttft.p50 == pytest.approx(0.1625)
    assert seen.ttft.p99 == pytest.approx(0.39)
    assert seen.ttft_mean == pytest.approx(0.18)


def test_series_without_a_deployment_are_left_out() -> None:
    stray = {"metric": {"namespace": "team"}, "value": [0, "1"]}
    assert assemble({"in_flight": [stray]}, LABELS, 0.0, 60.0) == {}


def test_label_names_are_checked() -> None:
    with pytest.raises(ValueError, match="no name of a Prometheus label"):
        Labels(deployment='x"} or up{')


class Server:
    """Speaks as much of Prometheus' HTTP API as the client uses."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.answer: Callable[[str], tuple[int, Any]] = lambda query: (200, [])
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                fields = {**parse_qs(urlsplit(self.path).query), **parse_qs(self.rfile.read(length).decode())}
                outer.requests.append((urlsplit(self.path).path, fields, dict(self.headers)))
                status, result = outer.answer(fields["query"][0])
                body = json.dumps({"status": "success", "data": {"result": result}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_the_number_of_queries_does_not_depend_on_the_number_of_deployments(server: Server) -> None:
    def many(query: str) -> tuple[int, Any]:
        return 200, [
            {"metric": {"namespace": f"n{i % 7}", "llmdeployment": f"d{i}"}, "value": [0, "1"]} for i in range(count)
        ]

    sent = []
    for count in (1, 300):
        server.answer = many
        prometheus = Prometheus(PrometheusSettings(server.url))
        telemetry = Telemetry(prometheus)
        assert len(telemetry.observe(100.0)) == count
        sent.append(prometheus.queries_sent)
        assert prometheus.queries_sent == telemetry.queries_per_tick
    assert sent[0] == sent[1]


def test_a_refused_query_costs_only_its_own_fields(server: Server) -> None:
    def answer(query: str) -> tuple[int, Any]:
        return (422, []) if "delta" in query else (200, [sample("1")])

    server.answer = answer
    (seen,) = Telemetry(Prometheus(PrometheusSettings(server.url))).observe(5.0).values()
    assert seen.in_flight == 1.0


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_server_that_will_not_answer_is_reported_as_unavailable(server: Server, status: int) -> None:
    server.answer = lambda query: (status, [])
    with pytest.raises(TelemetryUnavailableError, match=str(status)):
        Telemetry(Prometheus(PrometheusSettings(server.url))).observe(5.0)


def test_no_server_and_a_silent_server_are_reported_in_bounded_time(server: Server) -> None:
    with pytest.raises(TelemetryUnavailableError):
        Telemetry(Prometheus(PrometheusSettings("http://127.0.0.1:9"))).observe(5.0)
    release = threading.Event()
    server.answer = lambda query: (release.wait(20), (200, []))[1]
    start = time.monotonic()
    with pytest.raises(TelemetryUnavailableError, match="timed out"):
        Telemetry(Prometheus(PrometheusSettings(server.url, timeout_s=0.2))).observe(5.0)
    release.set()
    assert time.monotonic() - start < 15, "one retry, then given up"


def test_a_bearer_token_is_read_again_for_every_query(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    prometheus = Prometheus(PrometheusSettings(server.url, token_file=token))
    prometheus.instant("up", 1.0)
    token.write_text("second\n")
    prometheus.instant("up", 1.0)
    assert [headers["Authorization"] for _, _, headers in server.requests] == ["Bearer first", "Bearer second"]


def test_basic_credentials_are_sent(server: Server) -> None:
    Prometheus(PrometheusSettings(server.url, username="u", password="p")).instant("up", 12.5)
    path, fields, headers = server.requests[0]
    assert headers["Authorization"] == "Basic dTpw"
    assert path == "/api/v1/query"
    assert fields["time"] == ["12.500"]


def test_settings_refuse_what_cannot_work_and_never_show_secrets() -> None:
    with pytest.raises(ValueError, match="http://"):
        PrometheusSettings("prometheus:9090")
    with pytest.raises(ValueError, match="not both"):
        PrometheusSettings("http://p", token="t", username="u")
    assert "secret" not in repr(PrometheusSettings("http://p", token="secret"))
