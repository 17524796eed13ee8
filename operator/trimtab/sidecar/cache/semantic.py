"""The tier that answers prompts which mean the same as one answered before. Opt-in; asked after an exact miss.

A candidate must share the key's partition (tenant, engine, parameters, instructions and all earlier messages, byte for
byte) and the prompt's fingerprint (numbers, names, negations, … see `guard`) before similarity is looked at. Entries
are not held here: a candidate's key is looked up in the exact tiers, so that time to live, byte bounds and invalidation
hold for it too. A share of the hits is not served but compared with the engine's own answer; when these checks say that
too many hits would be wrong, the tier stops serving.
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import jiter
import numpy as np

from trimtab.sidecar.cache.embedding import Embedder, EmbeddingError, Vectors
from trimtab.sidecar.cache.false_hits import MIN_CHECKS, Verification
from trimtab.sidecar.cache.guard import fingerprint, same_words_in_another_order
from trimtab.sidecar.cache.index import Item, VectorIndex
from trimtab.sidecar.cache.key import last_user_text
from trimtab.sidecar.config import SemanticCache
from trimtab.sidecar.interfaces import Call, Entry, Key

log = logging.getLogger(__name__)

MAX_TEXT = 2000  # characters; longer prompts carry more facts than one vector holds
CANDIDATES = 4
MAX_PENDING = 256
VERIFIED_SHARE = 0.05
"""Share of hits that are checked instead of served; half of them until there is some evidence."""
FALSE_HIT_BOUND = 0.02
"""Share of wrong hits above which the tier stops, as soon as the checks say so with 95 % confidence."""
ANSWER_SIMILARITY = 0.8
"""Cosine from which two answers count as the same: they are worded differently even when both are right."""
_EXCLUDED = ("tools", "tool_choice", "response_format", "logprobs", "guideline")

Lookup = Callable[[Key], Awaitable[Entry | None]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt that was looked up and not found; waits for its answer."""

    vector: Vectors
    partition: bytes
    checked: Entry | None = None  # the answer that would have been given


class SemanticSearch:
    """Implements `SemanticTier`."""

    def __init__(
        self,
        config: SemanticCache,
        embedder: Embedder,
        lookup: Lookup,
        *,
        draw: Callable[[], float] = random.random,
        verified_share: float = VERIFIED_SHARE,
    ) -> None:
        """`lookup` asks the exact tiers; `draw` gives numbers in [0, 1) that pick the hits to be checked."""
        self._threshold = config.threshold
        self._timeout = config.timeout_seconds
        self._embedder = embedder
        self._lookup = lookup
        self._draw = draw
        self._verified_share = verified_share
        self._index = VectorIndex(config.max_entries)
        self._asked: OrderedDict[bytes, _Asked] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self.verification = Verification(FALSE_HIT_BOUND)
        self._counts = dict.fromkeys(("lookups", "candidates", "hits", "errors", "dropped"), 0)

    async def find(self, key: Key, call: Call) -> Entry | None:
        """See `SemanticTier.find`."""
        text = eligible_text(key, call)
        if text is None:
            return None
        self._counts["lookups"] += 1
        partition = guarded_partition(key, text)
        try:
            async with asyncio.timeout(self._timeout):
                vector = (await self._embedder.embed([text]))[0]
        except (EmbeddingError, OSError, TimeoutError):
            self._counts["errors"] += 1
            return None
        if not vector.any():
            return None
        entry = None if self.verification.suspended else await self._best(partition, vector, text)
        if entry is not None and self._draw() >= self._share():
            self._counts["hits"] += 1
            return entry
        self._asked[key.digest] = _Asked(vector, partition, entry)
        while len(self._asked) > MAX_PENDING:
            self._asked.popitem(last=False)
        return None

    def _share(self) -> float:
        early = self.verification.checks < MIN_CHECKS and self._verified_share > 0
        return max(0.5, self._verified_share) if early else self._verified_share

    async def _best(self, partition: bytes, vector: Vectors, text: str) -> Entry | None:
        for similarity, item in self._index.search(partition, vector, self._threshold, CANDIDATES):
            if same_words_in_another_order(text, item.text):
                continue
            self._counts["candidates"] += 1
            entry = await self._lookup(item.key)
            if entry is None:
                self._index.remove(item.key.digest)
                continue
            self._index.touch(item.key.digest)
            return replace(entry, tier="semantic", similarity=min(similarity, 1.0), wire=None)
        return None

    def learn(self, key: Key, call: Call, entry: Entry) -> None:
        """See `SemanticTier.learn`."""
        asked = self._asked.pop(key.digest, None)
        text = eligible_text(key, call)
        if text is None:
            return
        if asked is not None:
            self._index.add(asked.partition, asked.vector, Item(key, text))
            if asked.checked is not None:
                self._spawn(self._check(asked.checked, entry))
        elif len(self._tasks) < MAX_PENDING:
            self._spawn(self._embed_and_add(key, text))
        else:
            self._counts["dropped"] += 1

    async def _embed_and_add(self, key: Key, text: str) -> None:
        try:
            vector = (await self._embedder.embed([text]))[0]
        except (EmbeddingError, OSError, TimeoutError):
            self._counts["errors"] += 1
            return
        if vector.any():
            self._index.add(guarded_partition(key, text), vector, Item(key, text))

    async def _check(self, candidate: Entry, answer: Entry) -> None:
        """Compare the answer that would have been given with the engine's own."""
        texts = answer_text(candidate), answer_text(answer)
        if texts[0] is None or texts[1] is None:
            return
        agreed = texts[0] == texts[1]
        if not agreed:
            try:
                one, two = await self._embedder.embed([texts[0], texts[1]])
            except (EmbeddingError, OSError, TimeoutError):
                self._counts["errors"] += 1
                return
            same_facts = fingerprint(texts[0]) == fingerprint(texts[1])
            agreed = float(np.dot(one, two)) >= (ANSWER_SIMILARITY if same_facts else 0.5 + ANSWER_SIMILARITY / 2)
        was = self.verification.suspended
        self.verification.record(agreed)
        if self.verification.suspended and not was:
            log.warning("semantic answers are suspended: checks against the engine found too many wrong ones")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See `SemanticTier.close`."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._embedder.close()

    def metrics(self) -> Mapping[str, float]:
        """See `SemanticTier.metrics`."""
        counts = {f"trimtab_semantic_{name}_total": float(count) for name, count in self._counts.items()}
        counts["trimtab_semantic_entries"] = float(len(self._index))
        counts["trimtab_semantic_verified_agree_total"] = float(self.verification.agreed)
        counts["trimtab_semantic_verified_disagree_total"] = float(self.verification.disagreed)
        counts["trimtab_semantic_false_hit_bound"] = self.verification.upper_bound
        counts["trimtab_semantic_suspended"] = float(self.verification.suspended)
        return counts


def eligible_text(key: Key, call: Call) -> str | None:
    """The text to compare, or None when the request is not for this tier: no partition, tools, grammar, too long."""
    if not key.partition or any(call.body.get(name) for name in _EXCLUDED):
        return None
    text = last_user_text(call.route, call.body)
    return text if text is not None and 0 < len(text) <= MAX_TEXT else None


def guarded_partition(key: Key, text: str) -> bytes:
    """The key's partition, divided further by what must be equal in the text."""
    return blake2b(key.partition + fingerprint(text), digest_size=16).digest()


def answer_text(entry: Entry) -> str | None:
    """The text of a stored chat answer, put together from a stream's pieces where it is one."""
    parts: list[str] = []
    for data in _documents(entry):
        try:
            choices = jiter.from_json(data)["choices"]
            for choice in choices:
                content = (choice.get("message") or choice.get("delta") or {}).get("content")
                parts.append(content if isinstance(content, str) else "")
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return "".join(parts).strip()


def _documents(entry: Entry) -> list[bytes]:
    if not entry.stream:
        return [entry.body]
    lines = (line[5:].strip() for line in entry.body.split(b"\n") if line.startswith(b"data:"))
    return [line for line in lines if line != b"[DONE]"]
