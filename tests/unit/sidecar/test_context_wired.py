"""The context policies behind a running sidecar: side requests to the engine, the header, the metrics, the cache."""

import asyncio
import json
from typing import Any

import pytest

from .conftest import CHAT, Engine, Received, Start, json_answer

PATH = "/v1/chat/completions"
INFO = {"max_input_tokens": 200, "max_total_tokens": 300}


def chat(turns: int) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be brief."}]
    for number in range(turns):
        messages.append({"role": "user", "content": f"question {number} " + "word " * 20})
        messages.append({"role": "assistant", "content": f"answer {number} " + "word " * 20})
    messages.append({"role": "user", "content": "the last question"})
    return {"model": "tgi", "messages": messages, "temperature": 0}


async def script(request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that counts words."""
    if request.path == "/info":
        writer.write(json_answer(INFO))
        return
    body = json.loads(request.body)
    if request.path == "/tokenize":
        writer.write(json_answer([{"start": 0} for _ in body["inputs"].split()]))
    elif request.path == "/chat_tokenize":
        words = " ".join(message["content"] for message in body["messages"]).split()
        writer.write(json_answer({"tokenize_response": words}))
    elif body["messages"][0]["content"].startswith(("Condense", "Merge")):
        answer = {**CHAT, "choices": [{**CHAT["choices"][0], "message": {"role": "assistant", "content": "GIST"}}]}
        writer.write(json_answer(answer))
    else:
        writer.write(json_answer(CHAT))


@pytest.fixture
def counting_engine(engine: Engine) -> Engine:
    for path in ("/info", "/tokenize", "/chat_tokenize", PATH):
        engine.on(path, script)
    return engine


def sent(engine: Engine) -> list[Any]:
    bodies = [json.loads(request.body) for request in engine.received if request.path == PATH]
    return [body for body in bodies if body["messages"][0]["role"] == "system"]


async def test_a_long_conversation_is_condensed_by_the_engine_and_the_answer_cached(
    counting_engine: Engine, start: Start
) -> None:
    sidecar = await start(context={"policy": "summarize", "summaryMaxTokens": 10})
    first = await sidecar.post(PATH, chat(12))
    assert first.status == 200
    note = (first.header(b"x-trimtab-context") or b"").decode()
    assert note.startswith("summarize; condensed-turns=") and "counted=exact" in note
    (body,) = sent(counting_engine)
    assert "GIST" in body["messages"][0]["content"] and body["messages"][-1]["content"] == "the last question"
    calls = counting_engine.calls(PATH)
    second = await sidecar.post(PATH, chat(12))
    assert second.body == first.body and second.header(b"x-trimtab-context") == first.header(b"x-trimtab-context")
    assert b"; hit" in (second.header(b"cache-status") or b"")
    assert counting_engine.calls(PATH) == calls
    metrics = await sidecar.metrics()
    assert metrics["trimtab_context_summaries_total"] == calls - 1
    await sidecar.settled()
    assert sidecar.gateway.admission.in_flight == 0


async def test_a_refusal_carries_the_numbers(counting_engine: Engine, start: Start) -> None:
    sidecar = await start(context={"policy": "reject"})
    answer = await sidecar.post(PATH, chat(12))
    assert answer.status == 422
    words = len(" ".join(message["content"] for message in chat(12)["messages"]).split())
    assert str(words) in answer.json()["error"]["message"]
    assert sent(counting_engine) == []


async def test_summaries_wait_for_admission_like_everybody_else(counting_engine: Engine, start: Start) -> None:
    sidecar = await start(
        context={"policy": "summarize", "summaryMaxTokens": 10}, admission={"maxInFlight": 1, "maxQueue": 100}
    )
    answers = await asyncio.gather(*(sidecar.post(PATH, {**chat(12), "seed": n}) for n in range(5)))
    assert [answer.status for answer in answers] == [200] * 5
    await sidecar.settled()
    assert sidecar.gateway.admission.in_flight == 0


async def test_an_engine_that_is_gone_leaves_the_request_to_fail_as_it_would(engine: Engine, start: Start) -> None:
    sidecar = await start(context={"policy": "slidingWindow"})
    await engine.stop()
    answer = await sidecar.post(PATH, chat(12))
    assert answer.status == 503
    assert sidecar.gateway.admission.in_flight == 0
