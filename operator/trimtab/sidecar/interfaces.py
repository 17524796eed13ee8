"""The seam between the server (connections, admission, metrics) and the pure parts (`cache/`, `context/`).

Who does what:

- The server reads HTTP, finds the tenant's scope, honours request `Cache-Control`, coalesces equal requests, talks to
  the engine and writes answers. It never looks into a body except through the functions below.
- `cache/` turns a body into a `Key` (or says why not), checks a finished answer, and keeps entries in tiers.
- `context/` may rewrite a body so that it fits the model's window.

Everything synchronous here is called on the event loop and must not block. Everything asynchronous must honour
cancellation and must not raise: a broken tier answers None and counts its own errors.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields in arrival order; names in lower case, values without surrounding blanks."""


class Route(StrEnum):
    """What a path means; the value is the `route` label of the metrics."""

    COMPAT = "compat"  # POST /
    GENERATE = "generate"  # POST /generate
    GENERATE_STREAM = "generate_stream"  # POST /generate_stream
    CHAT = "chat"  # POST /v1/chat/completions
    COMPLETIONS = "completions"  # POST /v1/completions
    INVOCATIONS = "invocations"  # POST /invocations (SageMaker: any of the three shapes)
    VERTEX = "vertex"  # POST /vertex
    OTHER = "other"  # passes through: never cached, queued, or rewritten

    __hash__ = str.__hash__  # Enum's own is a Python function; routes are looked up several times a request

    @property
    def generates(self) -> bool:
        """Whether the engine generates tokens for it: such requests take part in admission and caching."""
        return self is not Route.OTHER

    @property
    def openai(self) -> bool:
        """Whether errors and streams have OpenAI's shape (else TGI's own)."""
        return self in (Route.CHAT, Route.COMPLETIONS)


class BadBodyError(ValueError):
    """The body can be no valid request: not JSON, no object, too deep, no UTF-8, … `str()` is safe to show a client."""


@dataclass(slots=True)
class Call:
    """One generation request after its body was parsed."""

    route: Route
    raw: bytes  # the body as received, or as rewritten by a context policy: what the engine gets
    body: dict[str, Any]
    stream: bool  # whether the engine will answer with server-sent events
    units: int = 1  # sequences the engine will run for it (best_of, number of prompts): its weight in admission


@dataclass(frozen=True, slots=True)
class Key:
    """The identity of an answer.

    `digest` (32 bytes) covers key version, secret, scope, identity of the engine, route family, representation (JSON or
    stream) and the canonical effective body; `partition` (for the semantic tier) covers all of it but the last user
    message.
    """

    digest: bytes
    stream: bool
    partition: bytes = b""


@dataclass(frozen=True, slots=True)
class NotCacheable:
    """Why a request is neither answered from nor put into a cache: one token of RFC 9110 for Cache-Status `detail`."""

    reason: str


@dataclass(slots=True, eq=False)
class Entry:
    """A complete, successful answer. `body` is sent as it is: JSON, or the events of a stream without comments."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]  # end-to-end headers worth repeating, content-type among them, no timings
    created: float  # seconds since the epoch, by this pod's clock
    ttl: float  # seconds it may be reused after `created`
    stream: bool
    prompt_tokens: int = 0  # 0 = unknown
    generated_tokens: int = 0
    tier: str = "memory"  # where it was found last: memory, redis, semantic
    similarity: float | None = None  # semantic hits only
    wire: bytes | None = field(default=None, repr=False)  # the server's memo of the response head

    @property
    def size(self) -> int:
        """Bytes accounted for in the memory tier (without key and bookkeeping)."""
        return len(self.body) + sum(len(n) + len(v) for n, v in self.headers)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an answer is not stored: a metric label such as `status`, `incomplete`, `error_event`, `tool_calls`."""

    reason: str


class RequestReader(Protocol):
    """cache/request.py `read_call`: bytes to Call. Pure."""

    def __call__(self, route: Route, raw: bytes) -> Call:
        """Raises BadBodyError. `/invocations` and `/vertex` keep their route; the reader finds `stream` and `units`."""


class Keyer(Protocol):
    """cache/key.py: the canonical key and what may be cached. Pure; built from Identity, policy and secret."""

    def key(self, call: Call, scope: bytes, *, store_sampled: bool) -> Key | NotCacheable:
        """Key of the effective call for a scope; `store_sampled`: the client asked to reuse sampled answers too."""


class EntryMaker(Protocol):
    """cache/entry.py `make_entry`: decides over a finished answer. Pure."""

    def __call__(
        self, call: Call, status: int, headers: Headers, body: bytes, *, now: float, ttl: float
    ) -> Entry | Rejected:
        """`body` is the whole answer without transfer coding; truncated answers are never passed in."""


class MemoryTier(Protocol):
    """cache/memory.py: bounded by bytes; LRU by default. Synchronous, a hit must cost well under a microsecond."""

    bytes_used: int
    evictions: int

    def get(self, key: Key, now: float) -> Entry | None:
        """None when absent or past its TTL."""

    def put(self, key: Key, entry: Entry, now: float) -> None:
        """Replaces; silently refuses entries over the size bound."""

    def clear(self) -> int:
        """Drop everything; number of entries dropped."""

    def __len__(self) -> int: ...


class RemoteTier(Protocol):
    """cache/redis.py. Fails open: deadline, circuit breaker, entries checked before they are believed."""

    async def get(self, key: Key) -> Entry | None:
        """None when absent, broken, slow or garbled. `entry.tier` is `redis`."""

    def put(self, key: Key, entry: Entry) -> None:
        """Queue a write; drops it when the queue is full."""

    async def clear(self) -> None:
        """Invalidate everything this deployment stored (epoch bump)."""

    async def close(self) -> None: ...

    def metrics(self) -> Mapping[str, float]:
        """Own counters by full metric name (`trimtab_redis_errors_total`, …), read at scrape time."""


class SemanticTier(Protocol):
    """cache/semantic.py: opt-in, asked after an exact miss only."""

    async def find(self, key: Key, call: Call) -> Entry | None:
        """A guarded similar answer within key.partition, `tier` = `semantic` and `similarity` set; else None."""

    def learn(self, key: Key, call: Call, entry: Entry) -> None:
        """Remember a stored exact entry (may work in the background)."""

    async def close(self) -> None: ...

    def metrics(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class ContextDone:
    """What a policy did: `call` goes on; `note` (header `x-trimtab-context`) is None when nothing was changed."""

    call: Call
    note: str | None = None
    tokens_saved: int = 0


@dataclass(frozen=True, slots=True)
class ContextRefused:
    """The request does not fit and the policy is to refuse: answered 422 with `message` (which carries the numbers)."""

    message: str


EngineCall = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""(path, JSON body) -> (status, body): a side request to the engine (summaries, /info, /tokenize) outside a client's
request; passes admission at low priority. Raises OSError or TimeoutError."""


class ContextPolicy(Protocol):
    """context/policy.py. None instead of an instance = no policy, bodies are not touched."""

    def unchanged(self, call: Call) -> bool:
        """Cheap proof (an upper bound on tokens) that `apply` would change nothing; keeps the fast path synchronous."""

    async def apply(self, call: Call, scope: bytes) -> ContextDone | ContextRefused: ...

    def metrics(self) -> Mapping[str, float]: ...
