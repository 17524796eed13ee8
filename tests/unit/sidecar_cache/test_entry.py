import json
from typing import Any

import answers
import pytest
from answers import JSON, SSE, call
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.entry import make_entry
from trimtab.sidecar.interfaces import Call, Entry, Headers, Rejected, Route

ERROR = {"error": "Model is overloaded", "error_type": "overloaded"}
OPENAI_ERROR = {"error": {"message": "Model is overloaded", "http_status_code": 422}}


def made(c: Call, body: bytes, *, status: int = 200, headers: Headers | None = None) -> Entry | Rejected:
    return make_entry(c, status, headers if headers is not None else SSE if c.stream else JSON, body, now=5.0, ttl=9.0)


def stored(c: Call, body: bytes, **more: Any) -> Entry:
    entry = made(c, body, **more)
    assert isinstance(entry, Entry), entry
    return entry


DOCUMENTS = [
    pytest.param(call(Route.GENERATE), answers.NATIVE_DOCUMENT, (0, 0), id="native"),
    pytest.param(call(Route.GENERATE), answers.NATIVE_DETAILED, (0, 2), id="native with details"),
    pytest.param(call(Route.COMPAT), [answers.NATIVE_DOCUMENT], (0, 0), id="root"),
    pytest.param(call(Route.CHAT), answers.CHAT_DOCUMENT, (7, 2), id="chat"),
    pytest.param(call(Route.COMPLETIONS, units=2), answers.TEXT_DOCUMENT, (7, 2), id="two prompts"),
]


@pytest.mark.parametrize(("c", "document", "tokens"), DOCUMENTS)
def test_a_complete_document_is_stored_byte_for_byte(c: Call, document: Any, tokens: tuple[int, int]) -> None:
    body = json.dumps(document, indent=1).encode()
    entry = stored(c, body)
    assert (entry.body, entry.created, entry.ttl, entry.stream) == (body, 5.0, 9.0, False)
    assert (entry.prompt_tokens, entry.generated_tokens) == tokens


@pytest.mark.parametrize(("c", "document", "tokens"), DOCUMENTS)
def test_no_document_that_was_cut_off_is_stored(c: Call, document: Any, tokens: tuple[int, int]) -> None:
    body = json.dumps(document).encode()
    assert all(isinstance(made(c, body[:end]), Rejected) for end in range(len(body)))


@pytest.mark.parametrize(("c", "events"), answers.STREAMS)
def test_a_complete_stream_is_stored_as_it_came_but_for_comments(c: Call, events: list[bytes]) -> None:
    plain = b"".join(events)
    assert stored(c, plain).body == plain
    noisy = b":hello\n\n" + b": ping\n\n".join(events) + b":\n\n"
    assert stored(c, noisy).body == plain
    inside = b"".join(b": ping\n" + e for e in events)
    assert stored(c, inside).body == plain
    assert stored(c, plain.replace(b"\n", b"\r\n")).body == plain


@pytest.mark.parametrize(("c", "events"), answers.STREAMS)
def test_no_stream_that_was_cut_off_is_stored(c: Call, events: list[bytes]) -> None:
    body = b"".join(events)
    assert all(isinstance(made(c, body[:end]), Rejected) for end in range(len(body)))


@pytest.mark.parametrize(("c", "events"), answers.STREAMS)
@pytest.mark.parametrize("error", [ERROR, OPENAI_ERROR])
def test_no_stream_with_an_error_in_it_is_stored(c: Call, events: list[bytes], error: Any) -> None:
    for place in range(len(events) + 1):
        inserted = [*events[:place], answers.event(error), *events[place:]]
        assert isinstance(made(c, b"".join(inserted)), Rejected)
        replaced = [*events[:place], answers.event(error), *events[place + 1 :]]
        assert isinstance(made(c, b"".join(replaced)), Rejected)
    assert made(c, answers.event(error) + b"".join(events)) == Rejected("error_event")


@pytest.mark.parametrize(("c", "events"), answers.STREAMS)
def test_nothing_may_follow_the_end_of_a_stream(c: Call, events: list[bytes]) -> None:
    for extra in (events[0], answers.event("[DONE]"), b"data: x\n\n"):
        assert isinstance(made(c, b"".join(events) + extra), Rejected)


def test_tokens_of_a_stream_are_counted() -> None:
    native = stored(*_whole(0))
    assert (native.prompt_tokens, native.generated_tokens) == (7, 2)
    chat = stored(*_whole(2))
    assert (chat.prompt_tokens, chat.generated_tokens) == (7, 2)
    bare = [answers.event(answers.token(1, "a")), answers.event(answers.token(2, "b", "ab"))]
    assert stored(answers.STREAMS[0][0], b"".join(bare)).generated_tokens == 2


def _whole(index: int) -> tuple[Call, bytes]:
    c, events = answers.STREAMS[index]
    return c, b"".join(events)


def test_a_stream_must_end_with_an_empty_line() -> None:
    c, events = answers.STREAMS[2]
    whole = b"".join(events)
    assert whole.endswith(b"data:[DONE]\n\n")
    assert made(c, whole[:-2] + b"xx") == Rejected("incomplete")


def test_a_choice_that_began_must_have_finished() -> None:
    c, events = answers.STREAMS[2]
    assert made(c, answers.event(answers.chunk("a", index=1)) + b"".join(events)) == Rejected("incomplete")


def test_every_prompt_of_a_stream_must_have_finished() -> None:
    c, events = answers.STREAMS[4]
    assert isinstance(made(c, b"".join([*events[:3], events[4]])), Rejected)
    assert isinstance(made(call(Route.COMPLETIONS, stream=True, units=3), b"".join(events)), Rejected)


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        pytest.param(503, JSON, "status", id="not 200"),
        pytest.param(206, JSON, "status", id="partial"),
        pytest.param(200, SSE, "representation", id="a stream nobody asked for"),
        pytest.param(200, (), "representation", id="no type"),
        pytest.param(200, ((b"content-type", b"text/plain"),), "representation", id="text"),
        pytest.param(200, (*JSON, (b"content-encoding", b"gzip")), "encoding", id="coded"),
        pytest.param(200, (*JSON, (b"set-cookie", b"a=b")), "upstream", id="personal"),
        pytest.param(200, (*JSON, (b"cache-control", b"max-age=0, No-Store")), "upstream", id="no-store"),
        pytest.param(200, (*JSON, (b"cache-control", b'private="x"')), "upstream", id="private"),
    ],
)
def test_answers_with_a_wrong_head_are_not_stored(status: int, headers: Headers, reason: str) -> None:
    body = json.dumps(answers.CHAT_DOCUMENT).encode()
    assert made(call(Route.CHAT), body, status=status, headers=headers) == Rejected(reason)


def test_only_headers_that_stay_true_are_kept() -> None:
    headers = (
        (b"content-type", b"application/json; charset=utf-8"),
        (b"x-total-time", b"120"),
        (b"x-prompt-tokens", b"11"),
        (b"x-generated-tokens", b"3"),
        (b"date", b"now"),
        (b"content-encoding", b"identity"),
    )
    entry = stored(call(Route.GENERATE), b'{"generated_text":"x"}', headers=headers)
    assert entry.headers == (headers[0], headers[2], headers[3])
    assert (entry.prompt_tokens, entry.generated_tokens) == (11, 3)


@pytest.mark.parametrize(
    ("c", "document"),
    [
        pytest.param(call(Route.GENERATE), ERROR, id="native error"),
        pytest.param(call(Route.COMPAT), ERROR, id="root error"),
        pytest.param(call(Route.CHAT), OPENAI_ERROR, id="chat error"),
        pytest.param(call(Route.COMPAT), answers.NATIVE_DOCUMENT, id="root without its array"),
        pytest.param(call(Route.GENERATE), {"generated_text": None}, id="no text"),
        pytest.param(call(Route.GENERATE), {"generated_text": "", "details": {}}, id="no reason"),
        pytest.param(call(Route.CHAT), {"choices": []}, id="no choice"),
        pytest.param(call(Route.CHAT), {"choices": [{"finish_reason": None}]}, id="unfinished"),
        pytest.param(call(Route.CHAT), {"choices": [{"finish_reason": ""}]}, id="finished with nothing"),
        pytest.param(call(Route.COMPLETIONS, units=3), answers.TEXT_DOCUMENT, id="one prompt unanswered"),
        pytest.param(call(Route.CHAT), 7, id="a number"),
    ],
)
def test_documents_that_are_no_complete_answer_are_not_stored(c: Call, document: Any) -> None:
    assert isinstance(made(c, json.dumps(document).encode()), Rejected)


@given(body=st.binary(max_size=200), stream=st.booleans(), route=st.sampled_from(list(Route)))
def test_arbitrary_bytes_are_never_stored_as_an_answer(body: bytes, stream: bool, route: Route) -> None:
    assert isinstance(made(call(route, stream=stream), body), Rejected)


@given(data=st.data())
def test_one_damaged_byte_is_stored_only_where_it_is_content(data: st.DataObject) -> None:
    c, events = data.draw(st.sampled_from(answers.STREAMS))
    body = bytearray(b"".join(events))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    entry = made(c, bytes(body))
    if isinstance(entry, Entry):
        assert entry.body.endswith(b"\n\n")
        assert b'"error"' not in entry.body
