"""The queries, answered by a real Prometheus over series written beforehand."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from trimtab.telemetry.observe import Telemetry
from trimtab.telemetry.prometheus import Prometheus, PrometheusSettings
from trimtab.telemetry.queries import Labels

START = 1_700_000_000
SCRAPE_S = 15
SAMPLES = 41
NOW = START + (SAMPLES - 1) * SCRAPE_S + 5
BUCKETS = (0.05, 0.1, 0.2)


def exposition() -> str:
    """Two deployments in two namespaces; `chat` has two pods, of which one scrape adds labels of its own."""
    lines: list[str] = []
    families: dict[str, list[str]] = {}

    def add(family: str, suffix: str, labels: str, value: float, at: int) -> None:
        families.setdefault(family, []).append(f"{family}{suffix}{{{labels}}} {value} {at}")

    pods = [
        ('namespace="team",llmdeployment="chat",pod="chat-0"', 2.0, 6),
        ('namespace="team",llmdeployment="chat",pod="chat-1",cluster="east",endpoint="metrics"', 1.0, 2),
        ('namespace="other",llmdeployment="chat",pod="x-0"', 0.5, 1),
    ]
    for labels, rate, busy in pods:
        for index in range(SAMPLES):
            at, seconds = START + index * SCRAPE_S, index * SCRAPE_S
            for cache, share in (("miss", 0.75), ("hit", 0.25)):
                more = f'{labels},route="chat",code="200",cache="{cache}"'
                add("trimtab_requests", "_total", more, rate * share * seconds, at)
            add("trimtab_tokens", "_total", f'{labels},direction="in"', 100 * rate * seconds, at)
            add("trimtab_tokens", "_total", f'{labels},direction="out"', 50 * rate * seconds, at)
            add("trimtab_in_flight", "", labels, busy, at)
            add("trimtab_queue_depth", "", labels, 1, at)
            add("trimtab_limit", "", labels, 8 * busy, at)
            for name, scale in (("ttft", 1.0), ("tpot", 0.1), ("request_duration", 1.0)):
                family = f"trimtab_{name}_seconds"
                miss = f'{labels},cache="miss"'
                count = 0.75 * rate * seconds
                for bound, share in zip(BUCKETS, (0.5, 0.9, 1.0), strict=True):
                    add(family, "_bucket", f'{miss},le="{bound * scale}"', share * count, at)
                add(family, "_bucket", f'{miss},le="+Inf"', count, at)
                add(family, "_sum", miss, 0.08 * scale * count, at)
                add(family, "_count", miss, count, at)
            add("tgi_batch_inference_duration", "_sum", f'{labels},method="decode"', 0.02 * seconds, at)
            add("tgi_batch_inference_duration", "_count", f'{labels},method="decode"', seconds, at)
    for family, samples in families.items():
        kind = "counter" if samples[0].startswith(f"{family}_total") else "unknown"
        lines += [f"# TYPE {family} {kind}", *sorted(samples, key=lambda line: line.rsplit(" ", 2)[0])]
    return "\n".join([*lines, "# EOF", ""])


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("no prometheus and promtool on the PATH")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "series.txt").write_text(exposition())
    (folder / "prometheus.yml").write_text("global: {}\n")
    backfill = [
        "promtool",
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        str(folder / "series.txt"),
        str(folder / "data"),
    ]
    subprocess.run(backfill, check=True, capture_output=True, timeout=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _await_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            pytest.fail(f"prometheus ended: {log.read_text()[-2000:]}")
        try:
            if requests.get(f"{url}/-/ready", timeout=1).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    pytest.fail("prometheus did not become ready in 30 s")


def test_a_tick_gives_one_observation_a_deployment(prometheus: str) -> None:
    seen = Telemetry(Prometheus(PrometheusSettings(prometheus))).observe(NOW)
    assert set(seen) == {("team", "chat"), ("other", "chat")}
    chat = seen["team", "chat"]
    assert chat.arrivals_per_s == pytest.approx(3.0, rel=0.02)
    assert chat.arrivals_now_per_s == pytest.approx(3.0, rel=0.02)
    assert chat.served_per_s == pytest.approx(2.25, rel=0.02)
    assert chat.hit_ratio == pytest.approx(0.25, rel=0.02)
    assert chat.rejected_per_s == 0
    assert (chat.in_flight, chat.queued, chat.limit, chat.pods_reporting) == (8, 2, 48, 2)
    assert chat.tokens_in_per_s == pytest.approx(300, rel=0.02)
    assert chat.tokens_out_per_s == pytest.approx(150, rel=0.02)
    assert chat.ttft.p50 == pytest.approx(0.05, rel=0.02)
    assert chat.ttft.p95 == pytest.approx(0.15, rel=0.02)
    assert chat.ttft_mean == pytest.approx(0.08, rel=0.02)
    assert chat.tpot_mean == pytest.approx(0.008, rel=0.02)
    assert chat.latency.p95 == pytest.approx(0.15, rel=0.02)
    assert chat.step_s == pytest.approx(0.02, rel=0.02)
    assert chat.queue_wait_mean is None, "there is no such series here"
    assert chat.age_s == pytest.approx(5, abs=0.5)


def test_old_series_show_their_age(prometheus: str) -> None:
    seen = Telemetry(Prometheus(PrometheusSettings(prometheus))).observe(NOW + 200)
    assert seen["team", "chat"].age_s == pytest.approx(205, abs=0.5)


def test_after_the_series_end_nothing_is_observed(prometheus: str) -> None:
    assert Telemetry(Prometheus(PrometheusSettings(prometheus))).observe(NOW + 3600) == {}


def test_history_gives_the_requests_that_needed_the_engine(prometheus: str) -> None:
    found = Telemetry(Prometheus(PrometheusSettings(prometheus))).history(NOW, hours=0.1)
    points = found["team", "chat"]
    assert len(points) >= 5
    assert all(rate == pytest.approx(2.25, rel=0.05) for _, rate in points)
    assert [t for t, _ in points] == sorted(t for t, _ in points)


def test_other_label_names_can_be_given(prometheus: str) -> None:
    telemetry = Telemetry(Prometheus(PrometheusSettings(prometheus)), Labels(deployment="pod"))
    assert ("team", "chat-0") in telemetry.observe(NOW)
