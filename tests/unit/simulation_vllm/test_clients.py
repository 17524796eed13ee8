import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from trimtab.catalog.catalogue import load_catalogue
from trimtab.simulation.vllm.app import make_app
from trimtab.simulation.vllm.launch import launch, parse_command

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
async def client():
    catalogue = load_catalogue()
    launched = launch(parse_command([MODEL], {}), {}, catalogue.find_model(MODEL).model, catalogue.gpu("H200"))
    async with (
        TestServer(make_app(launched, {})) as server,
        AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as openai,
    ):
        yield openai


async def test_openais_client_chats_and_completes(client):
    messages = [{"role": "user", "content": "Name a colour."}]
    whole = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=9, temperature=0)
    text = ""
    async for chunk in await client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=9, temperature=0, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == whole.usage.completion_tokens == 9
    several = await client.completions.create(model=MODEL, prompt="a", n=3, max_tokens=4, stream=True)
    seen = [chunk.choices[0] async for chunk in several]
    assert sorted(choice.index for choice in seen) == sorted([0, 1, 2] * 4)
    assert [choice.finish_reason for choice in seen[-3:]] == ["length"] * 3
    assert [model.id async for model in client.models.list()] == [MODEL]


async def test_an_answer_follows_a_schema_and_ends_by_itself(client):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How old?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert answer.choices[0].message.content.startswith('{"age": ')
    assert answer.choices[0].finish_reason == "stop"


async def test_a_stop_string_ends_the_answer_and_is_not_shown(client):
    body = {"model": MODEL, "prompt": "a", "max_tokens": 50, "temperature": 0}
    plain = (await client.completions.create(**body)).choices[0].text
    word = plain.split()[3]
    stopped = (await client.completions.create(**body, stop=word)).choices[0]
    assert stopped.finish_reason == "stop"
    assert word not in stopped.text
    assert plain.startswith(stopped.text)


async def test_openais_client_understands_the_refusals(client):
    with pytest.raises(NotFoundError, match="does not exist"):
        await client.completions.create(model="other", prompt="a")
    with pytest.raises(BadRequestError, match="maximum context length"):
        await client.completions.create(model=MODEL, prompt=" a" * 200_000)
