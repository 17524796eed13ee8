import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.sidecar.config import Context
from trimtab.sidecar.context.counting import EstimatingCounter, load_counter
from trimtab.sidecar.context.policy import WindowPolicy
from trimtab.sidecar.context.summary import NOTE_HEAD
from trimtab.sidecar.interfaces import Call, ContextDone, ContextRefused, Route

POLICIES = ("reject", "truncate", "slidingWindow", "summarize", "hierarchical")
TEXT = "a conversation grows with every turn and the window of the model does not"


class Engine:
    """Summaries that say what they were made of; counts calls."""

    def __init__(self, answer: Callable[[str], str] | None = None, *, delay: float = 0.0, status: int = 200) -> None:
        self.prompts: list[dict[str, Any]] = []
        self._answer = answer or (lambda prompt: f"gist {len(self.prompts)}")
        self._delay = delay
        self.status = status
        self.info: Any = None

    async def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/info":
            return (200, json.dumps(self.info).encode()) if self.info is not None else (503, b"")
        assert path == "/v1/chat/completions"
        self.prompts.append(json.loads(body))
        await asyncio.sleep(self._delay)
        text = self._answer(self.prompts[-1]["messages"][0]["content"])
        return self.status, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def chat(turns: int, *, system: str | None = "Be brief.", text: str = TEXT, **more: Any) -> Call:
    messages = [{"role": "system", "content": system}] if system is not None else []
    for number in range(turns):
        messages.append({"role": "user", "content": f"question {number}: {text}"})
        messages.append({"role": "assistant", "content": f"answer {number}: {text}"})
    messages.append({"role": "user", "content": "the last question"})
    return made(Route.CHAT, {"model": "tgi", "messages": messages, "temperature": 0, **more})


def made(route: Route, body: dict[str, Any], *, stream: bool = False) -> Call:
    return Call(route, json.dumps(body, ensure_ascii=False).encode(), body, stream)


Maker = Callable[..., WindowPolicy]


@pytest.fixture
def make(model_folder: Path) -> Maker:
    def made_policy(policy: str, engine: Engine | None = None, **more: Any) -> WindowPolicy:
        limits = {"max_input_tokens": 1000, "max_total_tokens": 1200, "summary_max_tokens": 40, **more}
        config = Context(policy=policy, **limits)  # type: ignore[arg-type]
        return WindowPolicy(config, load_counter(model_folder), engine or Engine())

    return made_policy


async def changed(policy: WindowPolicy, call: Call, scope: bytes = b"a") -> ContextDone:
    done = await policy.apply(call, scope)
    assert isinstance(done, ContextDone), done
    return done


def contents(call: Call) -> list[str]:
    return [message["content"] for message in call.body["messages"]]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_prompt_that_fits_goes_on_untouched(policy: str, make: Maker) -> None:
    call = chat(3)
    done = await changed(make(policy), call)
    assert done.call is call and done.note is None and done.tokens_saved == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_small_prompts_are_waved_through_at_once(policy: str, make: Maker) -> None:
    assert make(policy).unchanged(made(Route.CHAT, {"messages": [{"role": "user", "content": "Hi"}]}))
    assert not make(policy).unchanged(chat(20))
    assert make(policy).unchanged(made(Route.VERTEX, {"instances": [{"inputs": "x" * 10_000}]}))


async def test_a_refusal_says_the_numbers(make: Maker, model_folder: Path) -> None:
    call = chat(30, max_tokens=250)
    total = await load_counter(model_folder).total(call)
    refused = await make("reject").apply(call, b"a")
    assert isinstance(refused, ContextRefused)
    for number in (total, total - 950, 1000, 1200, 250):
        assert str(number) in refused.message
    assert "grows" not in refused.message


@pytest.mark.parametrize("policy", POLICIES[1:])
async def test_what_is_left_fits_keeps_instructions_and_the_last_turn_and_says_what_was_done(
    policy: str, make: Maker, model_folder: Path
) -> None:
    counter = load_counter(model_folder)
    call = chat(30, tools=[{"type": "function", "function": {"name": "f"}}])
    before = await counter.total(call)
    done = await changed(make(policy), call)
    after = await counter.total(done.call)
    assert after <= 1000
    assert done.tokens_saved == before - after > 0
    assert contents(done.call)[0].startswith("Be brief.")
    assert contents(done.call)[-1] == "the last question"
    assert done.note is not None and done.note.startswith(policy)
    assert f"tokens={before}->{after}; budget=1000; counted=exact" in done.note
    assert done.note.isascii() and "\n" not in done.note and "grows" not in done.note
    untouched = {name: value for name, value in done.call.body.items() if name != "messages"}
    assert untouched == {name: value for name, value in call.body.items() if name != "messages"}
    assert json.loads(done.call.raw) == done.call.body
    assert (done.call.route, done.call.stream, done.call.units) == (call.route, call.stream, call.units)


async def test_a_sliding_window_keeps_whole_turns_and_moves_in_blocks(make: Maker) -> None:
    policy = make("slidingWindow", low_water=0.5)
    starts = []
    for turns in range(12, 30):
        call = chat(turns)
        done = await changed(policy, call)
        kept = contents(done.call)[1:]
        assert kept == contents(call)[-len(kept) :]
        assert kept[0].startswith("question") or kept[0] == "the last question"
        starts.append(kept[0])
    assert len(set(starts)) < len(starts) / 2  # most turns leave the beginning as it was


async def test_tool_calls_are_not_separated_from_their_results(make: Maker) -> None:
    messages: list[dict[str, Any]] = []
    for number in range(12):
        messages += [
            {"role": "user", "content": f"{number} {TEXT}"},
            {"role": "assistant", "content": TEXT, "tool_calls": [{"id": str(number), "function": {"name": "f"}}]},
            {"role": "tool", "content": TEXT, "tool_call_id": str(number)},
        ]
    for policy in ("slidingWindow", "truncate", "summarize"):
        done = await changed(make(policy), made(Route.CHAT, {"messages": messages}))
        kept = done.call.body["messages"]
        assert kept[0]["role"] == "user"
        called = [c["id"] for m in kept for c in m.get("tool_calls", [])]
        assert called == [m["tool_call_id"] for m in kept if m["role"] == "tool"]
        assert called


async def test_truncation_cuts_the_beginning_of_the_oldest_text_that_is_left(make: Maker) -> None:
    long = " ".join(f"word{number}" for number in range(2000))
    call = made(Route.CHAT, {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": long}]})
    done = await changed(make("truncate"), call)
    system, user = contents(done.call)
    assert system == "S"
    assert long.endswith(user) and 0 < len(user) < len(long)
    assert "cut-tokens=" in (done.note or "")


@pytest.mark.parametrize("policy", ["slidingWindow", "summarize", "hierarchical"])
async def test_a_last_turn_that_is_too_long_alone_is_refused_not_cut(policy: str, make: Maker) -> None:
    call = made(Route.CHAT, {"messages": [{"role": "user", "content": TEXT * 100}]})
    assert isinstance(await make(policy).apply(call, b"a"), ContextRefused)


async def test_instructions_that_are_too_long_are_refused_not_cut(make: Maker) -> None:
    for policy in POLICIES:
        assert isinstance(await make(policy).apply(chat(1, system=TEXT * 100), b"a"), ContextRefused)


@pytest.mark.parametrize("route", [Route.GENERATE, Route.GENERATE_STREAM, Route.COMPAT, Route.COMPLETIONS])
async def test_raw_prompts_keep_their_end_or_are_refused(route: Route, make: Maker) -> None:
    field = "prompt" if route is Route.COMPLETIONS else "inputs"
    call = made(route, {field: TEXT * 100}, stream=route is Route.GENERATE_STREAM)
    for policy in ("truncate", "slidingWindow"):
        done = await changed(make(policy), call)
        assert (TEXT * 100).endswith(done.call.body[field])
        assert "kept=end" in (done.note or "")
        assert done.call.stream is call.stream
    for policy in ("reject", "summarize", "hierarchical"):
        assert isinstance(await make(policy).apply(call, b"a"), ContextRefused)


async def test_each_of_several_prompts_is_cut(make: Maker) -> None:
    call = made(Route.COMPLETIONS, {"prompt": ["short", TEXT * 100]})
    done = await changed(make("truncate"), call)
    assert done.call.body["prompt"][0] == "short"
    assert (TEXT * 100).endswith(done.call.body["prompt"][1])


async def test_older_turns_are_replaced_by_a_summary_of_them(make: Maker) -> None:
    engine = Engine(lambda prompt: "GIST OF " + " ".join(w for w in prompt.split() if w.rstrip(":").isdigit()))
    call = chat(30)
    done = await changed(make("summarize", engine), call)
    system, *rest = contents(done.call)
    assert system.startswith("Be brief.") and NOTE_HEAD in system and "GIST OF" in system
    assert rest == contents(call)[-len(rest) :]
    condensed = 30 - (len(rest) - 1) // 2
    assert f"condensed-turns={condensed}" in (done.note or "")
    said = "\n".join(prompt["messages"][0]["content"] for prompt in engine.prompts)
    assert all(f"question {number}:" in said for number in range(condensed))  # nothing is dropped silently
    assert all(prompt["temperature"] == 0 and prompt["max_tokens"] == 40 for prompt in engine.prompts)


async def test_summaries_are_reused_while_the_conversation_goes_on(make: Maker) -> None:
    engine = Engine()
    policy = make("summarize", engine, low_water=0.5)
    await changed(policy, chat(30))
    made_first = len(engine.prompts)
    await changed(policy, chat(30))
    assert len(engine.prompts) == made_first
    for turns in range(31, 36):
        await changed(policy, chat(turns))
    assert len(engine.prompts) <= made_first + 3
    assert policy.metrics()["trimtab_context_summaries_reused_total"] > 0


async def test_tenants_do_not_share_summaries(make: Maker) -> None:
    engine = Engine()
    policy = make("summarize", engine)
    await changed(policy, chat(30), scope=b"a")
    count = len(engine.prompts)
    await changed(policy, chat(30), scope=b"b")
    assert len(engine.prompts) == 2 * count


async def test_concurrent_requests_share_summaries_and_one_who_leaves_takes_nothing_away(make: Maker) -> None:
    engine = Engine(delay=0.02)
    policy = make("summarize", engine)
    tasks = [asyncio.ensure_future(policy.apply(chat(30), b"a")) for _ in range(4)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, ContextDone) for result in results] == [False, True, True, True]
    alone = Engine()
    await changed(make("summarize", alone), chat(30))
    assert len(engine.prompts) == len(alone.prompts)


async def test_a_hierarchy_condenses_summaries_of_summaries(make: Maker) -> None:
    engine = Engine(lambda prompt: "GIST")
    done = await changed(make("hierarchical", engine, low_water=0.5, keep_last_turns=1), chat(120))
    assert done.note is not None
    levels = int(done.note.split("levels=")[1].split(";")[0])
    assert levels >= 2
    merges = [p for p in engine.prompts if "Summary: GIST" in p["messages"][0]["content"]]
    assert merges
    assert contents(done.call)[0].count("GIST") == int(done.note.split("summaries=")[1].split(";")[0])


async def _refused(path: str, body: bytes) -> tuple[int, bytes]:
    return 429, b"{}"


async def _nonsense(path: str, body: bytes) -> tuple[int, bytes]:
    return 200, b'{"choices":[]}'


async def _gone(path: str, body: bytes) -> tuple[int, bytes]:
    raise ConnectionRefusedError


@pytest.mark.parametrize("engine", [_refused, _nonsense, _gone])
@pytest.mark.parametrize("policy", ["summarize", "hierarchical"])
async def test_without_summaries_the_window_slides_and_says_so(
    policy: str, engine: Callable[[str, bytes], Awaitable[tuple[int, bytes]]], make: Maker
) -> None:
    done = await changed(make(policy, engine), chat(30))
    assert f"instead-of={policy}; reason=summary-failed" in (done.note or "")
    assert NOTE_HEAD not in contents(done.call)[0]


async def test_a_block_longer_than_the_window_is_condensed_in_pieces(make: Maker) -> None:
    engine = Engine()
    messages = [
        {"role": "user", "content": " ".join(f"fact{n}" for n in range(1500))},
        {"role": "assistant", "content": "noted"},
        {"role": "user", "content": "and now?"},
    ]
    done = await changed(make("summarize", engine), made(Route.CHAT, {"messages": messages}))
    said = "\n".join(prompt["messages"][0]["content"] for prompt in engine.prompts)
    assert len(engine.prompts) > 1
    assert all(f"fact{n}" in said for n in range(1500))
    assert "condensed-turns=1" in (done.note or "")
    assert contents(done.call)[-1].endswith("and now?")


async def test_limits_come_from_the_engine_where_none_are_configured(make: Maker) -> None:
    engine = Engine()
    policy = make("slidingWindow", engine, max_input_tokens=None, max_total_tokens=None)
    assert not policy.unchanged(chat(0))
    call = chat(30)
    assert (await changed(policy, call)).call is call  # the engine does not tell yet
    engine.info = {"max_input_tokens": 1000, "max_total_tokens": 1200}
    policy._next_info = 0.0
    assert "budget=1000" in ((await changed(policy, call)).note or "")
    assert policy.unchanged(made(Route.CHAT, {"messages": []}))


@pytest.mark.parametrize("info", [{}, {"max_input_tokens": "9", "max_total_tokens": 9}, [], 7])
async def test_nonsense_from_the_engine_sets_no_limits(info: Any, make: Maker) -> None:
    engine = Engine()
    engine.info = info
    call = chat(30)
    policy = make("reject", engine, max_input_tokens=None, max_total_tokens=None)
    assert (await changed(policy, call)).call is call


async def test_an_estimate_never_refuses(model_folder: Path) -> None:
    config = Context(policy="reject", max_input_tokens=1000, max_total_tokens=1200)
    policy = WindowPolicy(config, EstimatingCounter(), Engine())
    call = chat(100)
    assert (await changed(policy, call)).call is call


async def test_an_estimate_is_called_one(model_folder: Path) -> None:
    config = Context(policy="slidingWindow", max_input_tokens=1000, max_total_tokens=1200)
    done = await changed(WindowPolicy(config, EstimatingCounter(), Engine()), chat(100))
    assert "counted=estimated" in (done.note or "")


async def test_what_no_tokenizer_counts_is_never_refused(make: Maker) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": TEXT * 100}, image]}]
    call = made(Route.CHAT, {"messages": messages})
    assert (await changed(make("reject"), call)).call is call


async def test_invalid_messages_are_left_to_the_engine(make: Maker) -> None:
    call = made(Route.CHAT, {"messages": [{"role": "pirate", "content": "x" * 2000}]})
    assert (await changed(make("reject"), call)).call is call


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    route=st.sampled_from(list(Route)),
    body=st.dictionaries(
        st.sampled_from(["messages", "inputs", "prompt", "tools", "parameters", "model"]), json_values
    ),
)
async def test_no_body_breaks_a_policy(policy: str, route: Route, body: dict[str, Any], make: Maker) -> None:
    tight = make(policy, max_input_tokens=5, max_total_tokens=8)
    outcome = await tight.apply(made(route, body), b"a")
    assert isinstance(outcome, ContextDone | ContextRefused)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    policy=st.sampled_from(POLICIES[1:]),
    lengths=st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.integers(0, 150)), min_size=1, max_size=30
    ),
    system=st.integers(0, 30),
)
async def test_a_changed_prompt_always_fits_and_ends_as_it_did(
    policy: str, lengths: list[tuple[str, int]], system: int, make: Maker, model_folder: Path
) -> None:
    messages = [{"role": "system", "content": "rule " * system}]
    messages += [
        {"role": role, "content": f"{number} " + "word " * words} for number, (role, words) in enumerate(lengths)
    ]
    call = made(Route.CHAT, {"messages": messages})
    outcome = await make(policy, max_input_tokens=300, max_total_tokens=400, summary_max_tokens=10).apply(call, b"a")
    if isinstance(outcome, ContextRefused):
        return
    if outcome.note is None:
        assert outcome.call is call
        return
    assert await load_counter(model_folder).total(outcome.call) <= 300
    kept = contents(outcome.call)
    assert kept[0].startswith("rule " * system)
    assert kept[-1].endswith("word " * min(lengths[-1][1], 5))
