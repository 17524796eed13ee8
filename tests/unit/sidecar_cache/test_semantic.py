import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.cache.embedding import EmbeddingError, Vectors, normalised
from trimtab.sidecar.cache.index import Item, VectorIndex
from trimtab.sidecar.cache.key import CanonicalKeyer
from trimtab.sidecar.cache.memory import LruMemory
from trimtab.sidecar.cache.request import read_call
from trimtab.sidecar.cache.semantic import SemanticSearch, answer_text
from trimtab.sidecar.config import Identity, SemanticCache
from trimtab.sidecar.interfaces import Call, Entry, Key, Route

KEYER = CanonicalKeyer(Identity(model="m"), partitioned=lambda scope: scope != b"opted out")
WORDS = ["how", "do", "i", "reset", "my", "password", "please", "the", "is", "to", "change", "forget", "secret"]


class BagOfWords:
    """A deterministic embedder: one dimension a word."""

    def __init__(self) -> None:
        self.calls = 0
        self.broken = False
        self.delay = 0.0

    async def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls += 1
        await asyncio.sleep(self.delay)
        if self.broken:
            raise EmbeddingError("down")
        rows = [[text.lower().replace("?", "").split().count(word) for word in WORDS] for text in texts]
        return normalised(np.array(rows, np.float32))

    async def close(self) -> None:
        self.broken = True


def answered(text: str) -> Entry:
    body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    return Entry(body, (), 0.0, 100.0, stream=False)


class Tier:
    """The semantic tier with exact memory behind it."""

    def __init__(self, *, verified_share: float = 0.0, draw: float = 0.5, **config: Any) -> None:
        self.memory = LruMemory(10**6)
        self.embedder = BagOfWords()
        settings = {"enabled": True, "threshold": 0.7, "timeout_seconds": 5.0, **config}
        self.search = SemanticSearch(
            SemanticCache(**settings), self.embedder, self.lookup, draw=lambda: draw, verified_share=verified_share
        )

    async def lookup(self, key: Key) -> Entry | None:
        return self.memory.get(key, 1.0)

    async def ask(self, text: str, *, scope: bytes = b"a", answer: str | None = None, **more: Any) -> Entry | None:
        """A request: found, or answered by the engine and learnt."""
        key, call = request(text, scope=scope, **more)
        entry = await self.search.find(key, call)
        if entry is None and answer is not None:
            made = answered(answer)
            self.memory.put(key, made, 0.0)
            self.search.learn(key, call, made)
            await asyncio.sleep(0.01)
        return entry


def request(text: Any, *, scope: bytes = b"a", system: str = "S", **more: Any) -> tuple[Key, Call]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    call = read_call(Route.CHAT, json.dumps({"messages": messages, "temperature": 0, **more}).encode())
    key = KEYER.key(call, scope)
    assert isinstance(key, Key)
    return key, call


FIRST = "how do i reset my password?"
ALIKE = "please how do i reset the password?"


async def test_a_reworded_prompt_gets_the_answer() -> None:
    tier = Tier()
    assert await tier.ask(FIRST, answer="Click.") is None
    found = await tier.ask(ALIKE)
    assert found is not None
    assert (found.body, found.tier) == (answered("Click.").body, "semantic")
    assert found.similarity is not None and 0.7 <= found.similarity < 1
    assert tier.search.metrics()["trimtab_semantic_hits_total"] == 1


@pytest.mark.parametrize(
    ("text", "more"),
    [
        pytest.param("how do i forget the secret", {}, id="another meaning"),
        pytest.param("how do i reset my password 2?", {}, id="a number"),
        pytest.param("how do i never reset my password?", {}, id="a negation"),
        pytest.param("how do i reset Bob password?", {}, id="a name"),
        pytest.param("password my reset i do how?", {}, id="another order"),
        pytest.param(ALIKE, {"scope": b"b"}, id="another tenant"),
        pytest.param(ALIKE, {"system": "T"}, id="another system prompt"),
        pytest.param(ALIKE, {"max_tokens": 5}, id="another parameter"),
        pytest.param(ALIKE, {"stream": True}, id="another representation"),
        pytest.param(ALIKE, {"tools": [{"type": "function", "function": {"name": "f"}}]}, id="tools"),
        pytest.param([{"type": "text", "text": ALIKE}], {}, id="structured content"),
        pytest.param(ALIKE + " x" * 2000, {}, id="too long"),
    ],
)
async def test_a_prompt_that_differs_in_more_than_words_does_not(text: Any, more: dict[str, Any]) -> None:
    tier = Tier()
    await tier.ask(FIRST, answer="Click.")
    assert await tier.ask(text, **more) is None


async def test_tenants_that_did_not_opt_in_are_neither_asked_nor_learnt() -> None:
    tier = Tier()
    await tier.ask(FIRST, scope=b"opted out", answer="Click.")
    assert await tier.ask(ALIKE, scope=b"opted out") is None
    assert tier.embedder.calls == 0


async def test_entries_that_left_the_exact_tiers_are_forgotten() -> None:
    tier = Tier()
    await tier.ask(FIRST, answer="Click.")
    tier.memory.clear()
    assert await tier.ask(ALIKE) is None
    assert tier.search.metrics()["trimtab_semantic_entries"] == 0


async def test_a_slow_or_broken_embedder_is_a_miss() -> None:
    tier = Tier(timeout_seconds=0.01)
    await tier.ask(FIRST, answer="Click.")
    tier.embedder.delay = 5.0
    assert await tier.ask(ALIKE) is None
    tier.embedder.delay, tier.embedder.broken = 0.0, True
    assert await tier.ask(ALIKE, answer="Other.") is None
    assert tier.search.metrics()["trimtab_semantic_errors_total"] >= 2


async def test_what_was_not_asked_before_is_learnt_too() -> None:
    tier = Tier()
    key, call = request(FIRST)
    tier.memory.put(key, answered("Click."), 0.0)
    tier.search.learn(key, call, answered("Click."))
    await asyncio.sleep(0.01)
    assert await tier.ask(ALIKE) is not None


async def test_checked_hits_are_not_served_but_compared() -> None:
    tier = Tier(verified_share=1.0)
    await tier.ask(FIRST, answer="please reset the password to change")
    assert await tier.ask(ALIKE, answer="please reset my password to change") is None
    assert await tier.ask("please do reset my password?", answer="forget the secret") is None
    metrics = tier.search.metrics()
    assert metrics["trimtab_semantic_verified_agree_total"] == 1
    assert metrics["trimtab_semantic_verified_disagree_total"] == 1
    assert metrics["trimtab_semantic_hits_total"] == 0


async def test_too_many_wrong_hits_stop_the_tier() -> None:
    tier = Tier()
    await tier.ask(FIRST, answer="Click.")
    for _ in range(20):
        tier.search.verification.record(False)
    assert await tier.ask(ALIKE) is None
    assert tier.search.metrics()["trimtab_semantic_suspended"] == 1


async def test_closing_closes_the_embedder() -> None:
    tier = Tier()
    await tier.search.close()
    assert tier.embedder.broken


def test_the_text_of_an_answer_is_put_together() -> None:
    assert answer_text(answered(" Hi ")) == "Hi"
    events = [{"choices": [{"delta": {"content": part}}]} for part in ("a", "b", None)]
    stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    assert answer_text(Entry(stream, (), 0.0, 1.0, stream=True)) == "ab"
    assert answer_text(Entry(b"[]", (), 0.0, 1.0, stream=False)) is None


def item(number: int) -> Item:
    return Item(Key(number.to_bytes(32, "big"), stream=False), str(number))


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "touch"]), st.integers(0, 12), st.sampled_from([b"p", b"q"])),
        max_size=60,
    ),
    bound=st.integers(1, 8),
)
def test_the_index_agrees_with_a_plain_search(steps: list[tuple[str, int, bytes]], bound: int) -> None:
    index = VectorIndex(bound)
    model: dict[int, bytes] = {}

    def vector(number: int) -> Vectors:
        angle = number / 10
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    for verb, number, partition in steps:
        if verb == "add":
            index.add(partition, vector(number), item(number))
            model.pop(number, None)
            model[number] = partition
            while len(model) > bound:
                del model[next(iter(model))]
        elif verb == "remove":
            index.remove(item(number).key.digest)
            model.pop(number, None)
        elif number in model:
            index.touch(item(number).key.digest)
            model[number] = model.pop(number)
        assert len(index) == len(model)
    for partition in (b"p", b"q"):
        found = {it.text for _, it in index.search(partition, vector(5), 0.95, 100)}
        near = {str(n) for n, where in model.items() if where == partition and np.cos((n - 5) / 10) >= 0.95}
        assert found == near


def test_vectors_of_a_new_size_replace_those_of_a_partition() -> None:
    index = VectorIndex(10)
    index.add(b"p", np.ones(2, np.float32), item(1))
    index.add(b"p", np.ones(3, np.float32), item(2))
    assert len(index) == 1
    assert index.search(b"p", np.ones(2, np.float32), 0.0, 9) == []
