"""Clients that people use understand the simulated server, and it accepts what the operator launches."""

import asyncio

import pytest
from aiohttp.test_utils import TestServer
from openai import AsyncOpenAI
from text_generation import AsyncClient

from trimtab.catalog.catalogue import load_catalogue
from trimtab.engines.registry import ENGINES
from trimtab.plan.choose import plan
from trimtab.plan.from_spec import catalogue_pools
from trimtab.plan.steps import CatalogueSteps
from trimtab.plan.types import PlanRequest, SloTargets
from trimtab.simulation.command import parse_command
from trimtab.simulation.launch import launch
from trimtab.simulation.server.app import make_app

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
async def url():
    arguments = parse_command(["--model-id", MODEL, "--max-total-tokens", "2048"], {})
    launched = launch(arguments, {}, load_catalogue().model(MODEL), load_catalogue().gpu("H200"))
    server = TestServer(make_app(launched, arguments, {}))
    await server.start_server()
    yield str(server.make_url("")).rstrip("/")
    await server.close()


async def test_the_openai_client_chats_and_streams(url):
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        messages = [{"role": "user", "content": "hello"}]
        whole = await client.chat.completions.create(model="tgi", messages=messages, max_tokens=5, temperature=0)
        stream = await client.chat.completions.create(
            model="tgi",
            messages=messages,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 5
        completion = await client.completions.create(model="tgi", prompt="hello", max_tokens=3)
        assert completion.choices[0].finish_reason == "length"
        assert [model.id async for model in client.models.list()] == [MODEL]


async def test_the_text_generation_client_generates_and_streams(url):
    client = AsyncClient(url, timeout=30)
    whole = await client.generate("hello", max_new_tokens=4)
    assert len(whole.details.tokens) == 4
    streamed = [event async for event in client.generate_stream("hello", max_new_tokens=4)]
    assert "".join(event.token.text for event in streamed) == whole.generated_text == streamed[-1].generated_text


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B-Instruct", "microsoft/phi-4", "Qwen/Qwen2.5-72B-Instruct"])
@pytest.mark.parametrize("gpu", ["L4", "A100-80GB", "H100-SXM"])
async def test_what_the_operator_launches_starts(model, gpu):
    catalogue = load_catalogue()
    pools = tuple(pool for pool in catalogue_pools(catalogue) if pool.gpu.id == gpu)
    request = PlanRequest(models=(catalogue.model(model),), pools=pools, slo=SloTargets(tpot={0.95: 0.2}))
    result = await asyncio.to_thread(plan, request, ENGINES["tgi"], CatalogueSteps())
    assert result.plan is not None
    chosen = result.plan
    arguments = parse_command(list(chosen.launcher_args), chosen.env)
    started = launch(arguments, chosen.env, chosen.model, chosen.pool.gpu)
    assert started.settings.max_total_tokens == chosen.max_total_tokens
    assert started.settings.capacity_tokens == pytest.approx(chosen.kv_tokens, rel=0.02)
    assert started.shards == chosen.option.gpus_per_replica
