"""Directives, Cache-Status, metrics text, stream observation, errors."""

import json

import pytest

from trimtab.sidecar.control import PLAIN, Control, forward_status, hit_status, parse_control
from trimtab.sidecar.engine import ResponseHead
from trimtab.sidecar.errors import Failure, response_bytes
from trimtab.sidecar.interfaces import Route
from trimtab.sidecar.metrics import Metrics
from trimtab.sidecar.observe import StreamWatch, json_timings, json_tokens, stream_error

from .conftest import chat_events, token_event


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"no-store", Control(read=False, write=False)),
        (b"No-Cache", Control(read=False)),
        (b"max-age=0", Control(read=False, max_age=0)),
        (b"max-age=60", Control(max_age=60)),
        (b'max-age="60"', Control(max_age=60)),
        (b"max-age=soon", Control(read=False, max_age=0)),
        (b"max-age=-1", Control(read=False, max_age=0)),
        (b"only-if-cached, max-age=5", Control(only_if_cached=True, max_age=5)),
        (b"min-fresh=10", Control(min_fresh=10)),
        (b"no-transform", Control()),
    ],
)
def test_directives(value: bytes, expected: Control) -> None:
    assert parse_control([(b"cache-control", value)]) == expected


def test_pragma_counts_only_without_cache_control() -> None:
    assert not parse_control([(b"pragma", b"no-cache")]).read
    assert parse_control([(b"pragma", b"no-cache"), (b"cache-control", b"max-age=5")]).read
    assert parse_control([(b"accept", b"x")]) is PLAIN


def test_cache_status_lines() -> None:
    assert hit_status(12.9) == b"cache-status: trimtab; hit; ttl=12\r\n"
    assert hit_status(5, tier="redis") == b"cache-status: trimtab; hit; ttl=5; detail=redis\r\n"
    assert b"x-trimtab-similarity: 0.9712\r\n" in hit_status(5, tier="semantic", similarity=0.97123)
    assert forward_status(b"bypass", detail="two words") == b"cache-status: trimtab; fwd=bypass; detail=two-words\r\n"


@pytest.mark.parametrize("cut", [1, 3, 7, 50, 10_000])
def test_events_are_counted_however_the_stream_is_cut(cut: int) -> None:
    stream = b"".join(token_event(i, final="x" if i == 9 else None) for i in range(1, 10))
    watch = StreamWatch()
    for number, start in enumerate(range(0, len(stream), cut)):
        watch.feed(stream[start : start + cut], float(number))
    assert watch.tokens() == (3, 9)
    assert watch.events == 9
    assert watch.first <= watch.last


@pytest.mark.parametrize("usage", [False, True])
def test_closing_events_of_openais_streams_are_no_tokens(usage: bool) -> None:
    watch = StreamWatch()
    for number, event in enumerate(chat_events(6, usage=usage)):
        watch.feed(event, float(number))
    assert watch.tokens() == (3 if usage else 0, 6)


def test_keep_alive_comments_are_no_tokens() -> None:
    watch = StreamWatch()
    watch.feed(b":\n\n", 1.0)
    watch.feed(token_event(1), 2.0)
    assert (watch.events, watch.first) == (1, 2.0)


def test_quotes_within_a_text_are_no_usage() -> None:
    watch = StreamWatch()
    watch.feed(b"data: " + json.dumps({"token": {"text": '"completion_tokens":99,'}}).encode() + b"\n\n", 1.0)
    assert watch.tokens() == (0, 1)


def _head(**fields: str) -> ResponseHead:
    head = ResponseHead()
    head.headers = head.low = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return head


def test_timings_of_json_answers() -> None:
    head = _head(x_total_time="1500", x_inference_time="1000", x_generated_tokens="10", x_prompt_tokens="7")
    assert json_tokens(head, b"") == (7, 10)
    assert json_timings(head, 10) == pytest.approx((0.6, 0.1))
    assert json_timings(_head(), 10) is None
    assert json_timings(_head(x_total_time="x", x_inference_time="1"), 10) is None
    assert json_tokens(_head(), b'"usage":{"prompt_tokens":3, "completion_tokens": 4}') == (3, 4)


@pytest.mark.parametrize(
    "event", [token_event(1), b"data: [DONE]", b'data: {"error":null}', b"data: {broken", b': {"error":1}', b""]
)
def test_what_is_no_error_event(event: bytes) -> None:
    assert stream_error(event, Route.CHAT) is None


def test_error_bodies_have_the_shape_of_the_route() -> None:
    failure = Failure(429, "overloaded", "Model is overloaded", retry_after=7)
    assert json.loads(failure.body(Route.GENERATE)) == {"error": "Model is overloaded", "error_type": "overloaded"}
    error = json.loads(failure.body(Route.CHAT))["error"]
    assert (error["message"], error["type"], error["http_status_code"]) == ("Model is overloaded", "overloaded", 429)
    raw = response_bytes(failure, Route.CHAT, close=True)
    assert raw.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after: 7\r\nconnection: close\r\n\r\n{" in raw


def test_metrics_text() -> None:
    metrics = Metrics()
    metrics.ttft.cell("miss", "stream").observe(0.26)
    metrics.ttft.cell("miss", "stream").observe(0.3)
    metrics.upstream_errors.add('odd "kind"\n\\')
    lines = metrics.text().splitlines()
    assert 'trimtab_ttft_seconds_bucket{cache="miss",source="stream",le="0.25"} 0' in lines
    assert 'trimtab_ttft_seconds_bucket{cache="miss",source="stream",le="0.3"} 2' in lines
    assert 'trimtab_ttft_seconds_bucket{cache="miss",source="stream",le="+Inf"} 2' in lines
    assert 'trimtab_ttft_seconds_count{cache="miss",source="stream"} 2' in lines
    assert r'trimtab_upstream_errors_total{kind="odd \"kind\"\n\\"} 1' in lines
    assert "trimtab_cache_misses_total 0" in lines
