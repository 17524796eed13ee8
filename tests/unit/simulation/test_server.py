import asyncio
import json
import re

import pytest
from aiohttp.test_utils import TestClient, TestServer

from trimtab.catalog.catalogue import load_catalogue
from trimtab.engines.tgi_facts import METRICS
from trimtab.simulation.command import parse_command
from trimtab.simulation.launch import launch
from trimtab.simulation.server.app import SERVICE, make_app
from trimtab.simulation.server.metrics import duration_buckets

FLAGS = "--model-id meta-llama/Llama-3.1-8B-Instruct --max-total-tokens 2048 --max-input-tokens 1024"


@pytest.fixture
async def serve():
    """Start a server with further flags and variables; returns a client."""
    clients = []

    async def start(flags: str = "", env: dict[str, str] | None = None) -> TestClient:
        arguments = parse_command([*FLAGS.split(), *flags.split()], env or {})
        model = load_catalogue().model("meta-llama/Llama-3.1-8B-Instruct")
        launched = launch(arguments, env or {}, model, load_catalogue().gpu("H200"))
        client = TestClient(TestServer(make_app(launched, arguments, env or {}), handler_cancellation=True))
        await client.start_server()
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()


async def native(client, inputs="one two three", path="/generate", **parameters):
    return await client.post(path, json={"inputs": inputs, "parameters": parameters})


def events(text: str) -> list[str]:
    return [block.removeprefix("data: ") for block in text.strip().split("\n\n")]


async def test_generate_answers_with_details_and_timing_headers(serve):
    client = await serve()
    response = await native(client, max_new_tokens=6, details=True)
    body = await response.json()
    details = body["details"]
    assert response.status == 200
    assert (details["finish_reason"], details["generated_tokens"], len(details["tokens"])) == ("length", 6, 6)
    assert "".join(token["text"] for token in details["tokens"]) == body["generated_text"]
    assert details["prefill"] == []
    assert response.headers["x-prompt-tokens"] == "3"
    assert response.headers["x-generated-tokens"] == "6"
    for name in ("total", "validation", "queue", "inference"):
        assert re.fullmatch(r"\d+", response.headers[f"x-{name}-time"])
    assert response.headers["x-compute-type"] == "gpu+optimized"


async def test_greedy_answers_repeat_and_depend_on_prompt_and_parameters(serve):
    client = await serve()

    async def answer(inputs, **parameters):
        return (await (await native(client, inputs, max_new_tokens=8, **parameters)).json())["generated_text"]

    first = await answer("a question")
    assert await answer("a question") == first
    assert await answer("another question") != first
    assert await answer("a question", repetition_penalty=1.2) != first
    seeded = await answer("a question", do_sample=True, seed=1)
    assert await answer("a question", do_sample=True, seed=1) == seeded
    assert await answer("a question", do_sample=True, seed=2) != seeded
    assert await answer("a question", do_sample=True) != await answer("a question", do_sample=True)


async def test_a_stream_has_one_event_a_token_and_the_text_in_the_last(serve):
    client = await serve()
    whole = (await (await native(client, max_new_tokens=5)).json())["generated_text"]
    response = await native(client, path="/generate_stream", max_new_tokens=5)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert "x-total-time" not in response.headers
    found = [json.loads(event) for event in events(await response.text())]
    assert [event["index"] for event in found] == [1, 2, 3, 4, 5]
    assert [event["generated_text"] for event in found] == [None] * 4 + [whole]
    assert found[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 5,
        "seed": None,
        "input_length": 3,
    }


async def test_the_compatible_route_answers_in_a_list_with_the_whole_text(serve):
    client = await serve()
    body = await (await client.post("/", json={"inputs": "one two", "parameters": {"max_new_tokens": 2}})).json()
    assert len(body) == 1
    assert body[0]["generated_text"].startswith("one two ")
    response = await client.post("/", json={"inputs": "one", "stream": True, "parameters": {"max_new_tokens": 2}})
    assert len(events(await response.text())) == 2


CHAT = {"model": "tgi", "messages": [{"role": "user", "content": "one two three"}], "max_tokens": 4, "temperature": 0}


async def test_a_chat_completion_has_openai_shape(serve):
    client = await serve()
    body = await (await client.post("/v1/chat/completions", json=CHAT)).json()
    assert (body["object"], body["id"]) == ("chat.completion", "")
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


async def test_a_chat_stream_ends_with_usage_when_asked_and_done(serve):
    client = await serve()
    request = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    found = events(await (await client.post("/v1/chat/completions", json=request)).text())
    assert found[-1] == "[DONE]"
    chunks = [json.loads(event) for event in found[:-1]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    plain = events(await (await client.post("/v1/chat/completions", json={**CHAT, "stream": True})).text())
    assert len(plain) == 5


async def test_completions_take_several_prompts_but_not_too_many(serve):
    client = await serve()
    body = await (await client.post("/v1/completions", json={"prompt": ["a", "b c"], "max_tokens": 3})).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    many = await client.post("/v1/completions", json={"prompt": ["a"] * 5, "max_tokens": 3})
    assert (many.status, (await many.json())["error_type"]) == (422, "batch size exceeded")
    suffix = await client.post("/v1/completions", json={"prompt": "a", "suffix": "b"})
    assert (suffix.status, (await suffix.json())["error_type"]) == (422, "suffix not supported")


async def test_tools_and_response_formats_give_json_that_fits(serve):
    client = await serve()
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": schema}}
    body = await (await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 50, "tools": [tool]})).json()
    call = body["choices"][0]["message"]["tool_calls"][0]["function"]
    assert call["name"] == "weather"
    assert set(json.loads(call["arguments"])) == {"city", "days"}
    wanted = {"type": "json_object", "value": schema}
    body = await (
        await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 50, "response_format": wanted})
    ).json()
    assert isinstance(json.loads(body["choices"][0]["message"]["content"])["days"], int)
    assert body["choices"][0]["finish_reason"] == "stop"
    both = await client.post("/v1/chat/completions", json={**CHAT, "tools": [tool], "response_format": wanted})
    assert (both.status, (await both.json())["error_type"]) == (422, "tool_error")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"temperature": 0.0}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"truncate": 1025}, "`truncate` must be strictly positive and less than 1024. Given: 1025"),
        ({"stop": ["a"] * 5}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"grammar": {"type": "json", "value": {"type": "object"}}}, "grammar is not valid"),
    ],
)
async def test_parameters_are_validated_as_the_router_does(serve, parameters, message):
    client = await serve()
    response = await native(client, **{"max_new_tokens": 2, **parameters})
    body = await response.json()
    assert (response.status, body["error_type"]) == (422, "validation")
    assert message in body["error"]
    metrics = await (await client.get("/metrics")).text()
    assert 'tgi_request_failure{err="validation"} 1' in metrics


async def test_only_the_first_chunk_of_an_answer_is_checked_and_a_later_one_may_fail(serve):
    client = await serve()
    response = await native(client, path="/generate_stream", max_new_tokens=2046)
    found = [json.loads(event) for event in events(await response.text())]
    assert len(found) == 1025
    assert found[-1]["error"].endswith("Given: 1027 `inputs` tokens and 1024 `max_new_tokens`")


async def test_too_long_prompts_are_refused_and_truncated_on_request(serve):
    client = await serve()
    long = "word " * 1500
    refused = await native(client, long, max_new_tokens=2)
    assert (await refused.json())["error"].endswith("must have less than 1024 tokens. Given: 1501")
    taken = await native(client, long, max_new_tokens=2, truncate=100)
    assert taken.headers["x-prompt-tokens"] == "100"


async def test_bodies_that_the_web_framework_refuses_are_plain_text_and_not_counted(serve):
    client = await serve("--payload-limit 1000")
    wrong_type = await client.post("/generate", json={"inputs": 5})
    assert (wrong_type.status, wrong_type.content_type) == (422, "text/plain")
    broken = await client.post("/generate", data="{", headers={"Content-Type": "application/json"})
    assert broken.status == 400
    assert (await client.post("/generate", data="{}")).status == 415
    large = await client.post("/generate", json={"inputs": "a" * 2000})
    assert large.status == 413
    assert (await client.get("/generate")).status == 405
    assert (await client.get("/nothing")).status == 404
    assert (await (await client.get("/metrics")).text()).strip() == ""


async def test_beyond_max_concurrent_requests_answers_are_429(serve):
    client = await serve("--max-concurrent-requests 1")
    first = asyncio.create_task(native(client, max_new_tokens=60))
    await asyncio.sleep(0.05)
    second = await native(client, max_new_tokens=2)
    assert (second.status, await second.json()) == (
        429,
        {"error": "Model is overloaded", "error_type": "overloaded"},
    )
    streamed = await native(client, path="/generate_stream", max_new_tokens=2)
    assert streamed.status == 200, "a stream's error is an event"
    assert json.loads(events(await streamed.text())[0])["error_type"] == "overloaded"
    chat = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    found = events(await chat.text())
    assert json.loads(found[0])["error"] == {"message": "Model is overloaded", "http_status_code": 422}
    assert found[-1] == "[DONE]"
    assert (await first).status == 200
    assert 'tgi_request_failure{err="overloaded"} 3' in await (await client.get("/metrics")).text()


async def test_best_of_takes_a_permit_for_each_copy(serve):
    client = await serve("--max-concurrent-requests 2")
    body = await (await native(client, best_of=2, do_sample=True, max_new_tokens=3, details=True)).json()
    assert len(body["details"]["best_of_sequences"]) == 1
    tight = await serve("--max-concurrent-requests 1")
    assert (await native(tight, best_of=2, do_sample=True, max_new_tokens=3)).status == 429


async def test_stop_sequences_end_an_answer(serve):
    client = await serve()
    words = (await (await native(client, max_new_tokens=10)).json())["generated_text"].split()
    # The stop list is a parameter of the answer, so the text differs: only the reason and the end are certain.
    body = await (await native(client, max_new_tokens=1000, stop=["a", words[0]], details=True)).json()
    assert body["details"]["finish_reason"] == "stop_sequence"
    assert "a" in body["generated_text"]
    assert "a" not in "".join(token["text"] for token in body["details"]["tokens"][:-1])


async def test_answers_may_end_early_when_asked_by_variable(serve):
    client = await serve(env={"TRIMTAB_SIM_EOS": "1"})
    reasons = set()
    for index in range(6):
        response = await native(client, f"question {index}", max_new_tokens=20, details=True)
        reasons.add((await response.json())["details"]["finish_reason"])
    assert "eos_token" in reasons


async def test_info_health_and_models_need_no_key(serve):
    client = await serve("--api-key Secret")
    info = await (await client.get("/info")).json()
    assert info["max_input_tokens"] == 1024
    assert info["max_total_tokens"] == 2048
    assert info["version"] == "3.3.6-dev0"
    for path in ("/health", "/ping", "/", "/metrics", "/v1/models"):
        assert (await client.get(path)).status == 200
    assert (await native(client, max_new_tokens=1)).status == 401
    allowed = await client.post(
        "/generate",
        json={"inputs": "a", "parameters": {"max_new_tokens": 1}},
        headers={"Authorization": "bearer SECRET"},
    )
    assert allowed.status == 200, "keys are compared without case"
    assert (await client.post("/chat_tokenize", json={"messages": []})).status == 200


async def test_tokenize_gives_the_text_in_pieces_with_offsets(serve):
    client = await serve()
    text = "Hello internationalization  world"
    tokens = await (await client.post("/tokenize", json={"inputs": text})).json()
    assert "".join(token["text"] for token in tokens) == text
    assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens)
    counted = (await native(client, text, max_new_tokens=1)).headers["x-prompt-tokens"]
    assert int(counted) == len(tokens)
    chat = await (await client.post("/chat_tokenize", json={"messages": CHAT["messages"]})).json()
    assert len(chat["tokenize_response"]) == 5


async def test_vertex_and_sagemaker_routes(serve):
    client = await serve()
    instance = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
    vertex = await (await client.post("/vertex", json={"instances": [instance, instance]})).json()
    assert len(vertex["predictions"]) == 2
    wrong = {"inputs": "a", "parameters": {"top_p": 1.0}}
    assert (await client.post("/vertex", json={"instances": [wrong]})).status == 500
    assert (await (await client.post("/invocations", json=CHAT)).json())["object"] == "chat.completion"
    assert "generated_text" in (await (await client.post("/invocations", json=instance)).json())[0]


async def test_metrics_appear_with_their_first_event_under_tgis_names(serve):
    client = await serve()
    assert (await (await client.get("/metrics")).text()).strip() == ""
    await asyncio.gather(*(native(client, f"question {i}", max_new_tokens=5) for i in range(3)))
    await native(client, top_p=1.0, max_new_tokens=1)
    text = await (await client.get("/metrics")).text()
    for metric in METRICS.values():
        assert re.search(rf"^# TYPE {metric.name} {metric.kind.value}$", text, re.MULTILINE), metric.name
    assert "tgi_request_success 3\n" in text
    assert 'tgi_request_failure{err="validation"} 1\n' in text
    assert "tgi_request_generated_tokens_sum 15\n" in text
    assert 'tgi_batch_inference_count{method="prefill"}' in text
    assert "tgi_batch_max_total_tokens" not in text
    assert "# TYPE tgi_request_skipped_tokens summary" in text
    bounds = re.findall(r'^tgi_request_duration_bucket\{le="([^"]+)"\}', text, re.MULTILINE)
    assert bounds == [repr(bound) for bound in duration_buckets()] + ["+Inf"]
    assert len(re.findall(r"^tgi_batch_next_size_bucket", text, re.MULTILINE)) == 1025
    assert 'tgi_request_input_length_bucket{le="10.24"}' in text


async def test_a_chat_counts_twice(serve):
    client = await serve()
    await client.post("/v1/chat/completions", json=CHAT)
    assert "tgi_request_count 2\n" in await (await client.get("/metrics")).text()


async def test_a_client_that_leaves_frees_its_permit_and_is_counted_as_dropped(serve):
    client = await serve("--max-concurrent-requests 1")
    response = await native(client, path="/generate_stream", max_new_tokens=1000)
    await response.content.readline()
    response.close()
    service = client.server.app[SERVICE]
    for _ in range(200):
        if 'tgi_request_failure{err="dropped"} 1' in service.metrics.render():
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the engine never notices")
    assert (service.driver.engine.permits, service.driver.engine.running) == (0, 0)
    assert (await native(client, max_new_tokens=1)).status == 200


async def test_a_repeated_prompt_is_answered_from_the_prefix_cache(serve):
    client = await serve()
    prompt = "word " * 1000
    await native(client, prompt, max_new_tokens=1)
    allocator = client.server.app[SERVICE].driver.engine.allocator
    assert allocator.cached_blocks >= 1000


async def test_a_stream_that_waits_long_is_kept_open_by_comments(serve, monkeypatch):
    monkeypatch.setattr("trimtab.simulation.server.exchange.KEEP_ALIVE_SECONDS", 0.05)
    client = await serve("--max-batch-prefill-tokens 16384 --max-batch-size 1", {"PREFILL_CHUNKING": "0"})
    first = asyncio.create_task(native(client, max_new_tokens=60))
    await asyncio.sleep(0.02)
    waiting = await (await native(client, path="/generate_stream", max_new_tokens=2)).text()
    assert waiting.startswith(":\n\n")
    assert len([block for block in waiting.split("\n\n") if block.startswith("data: ")]) == 2
    await first


async def test_browsers_of_any_origin_are_let_in_unless_origins_are_named(serve):
    client = await serve()
    assert (await client.get("/info")).headers["Access-Control-Allow-Origin"] == "*"
    named = await serve("--cors-allow-origin https://a.example --cors-allow-origin https://b.example")
    allowed = await named.get("/info", headers={"Origin": "https://b.example"})
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert (
        "Access-Control-Allow-Origin" not in (await named.get("/info", headers={"Origin": "https://c.example"})).headers
    )


async def test_a_failing_pass_fails_its_whole_batch_and_kills_the_shard(serve):
    client = await serve(env={"TRIMTAB_SIM_CRASH_AFTER_PASSES": "10"})
    answers = await asyncio.gather(*(native(client, f"question {i}", max_new_tokens=50) for i in range(3)))
    assert [answer.status for answer in answers] == [424] * 3
    assert (await answers[0].json())["error_type"] == "generation"
    service = client.server.app[SERVICE]
    assert service.driver.crashed.is_set()
    assert 'tgi_request_failure{err="generation"} 3' in service.metrics.render()
