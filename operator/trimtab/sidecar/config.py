"""The sidecar's configuration: `config.json` (static) and `live.json` (re-read while running).

Both are written by the operator into one ConfigMap mounted as a directory. Keys are camelCase. An unknown key is an
error: the operator and the sidecar of one release agree on the format, so it is a mistake somebody should see.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

DEFAULT_DIRECTORY = Path("/etc/trimtab/sidecar")
"""Where the ConfigMap is mounted."""
DIRECTORY_VARIABLE = "TRIMTAB_SIDECAR_CONFIG"
"""Environment variable that names another directory."""

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConfigError(ValueError):
    """A file is missing, is no JSON, or breaks the schema; `str()` names file and field."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Identity(_Model):
    """What makes two engines give different answers to one request; part of every cache key."""

    model: str
    revision: str = ""
    quantization: str = ""
    engine: str = ""
    template: str = ""


class Listen(_Model):
    """Where the sidecar listens."""

    host: str = "0.0.0.0"  # noqa: S104 - the pod's own address is not known beforehand
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9100


class Limits(_Model):
    """Bounds on what a client may ask of the sidecar."""

    max_head_bytes: Positive = 32 * 1024
    max_body_bytes: Positive = 8 * 1024 * 1024
    max_buffered_bytes: Positive = 256 * 1024 * 1024
    """All request bodies held at one time."""
    max_connections: Positive = 4096
    head_timeout_seconds: Seconds = 10.0
    """From the first byte of a request to the end of its head."""
    body_timeout_seconds: Seconds = 60.0
    """From the end of the head to the end of the body."""
    idle_timeout_seconds: Seconds = 75.0
    """Between requests on one connection."""
    write_timeout_seconds: Seconds = 120.0
    """How long a client may leave an answer unread before its connection is closed."""


class Engine(_Model):
    """How the engine is talked to."""

    connect_timeout_seconds: Seconds = 2.0
    response_timeout_seconds: Seconds = 600.0
    """From the request to the first byte of the answer."""
    silence_timeout_seconds: Seconds = 120.0
    """Between two pieces of an answer."""
    max_idle_connections: Positive = 256
    idle_timeout_seconds: Seconds = 55.0
    """An unused connection is closed after this time."""
    stream_errors: Literal["status", "event"] = "status"
    """`status`: an error that a stream brings before its first token becomes the HTTP status it stands for.
    `event`: it stays an event in a stream of status 200, as the engine sends it."""


class Admission(_Model):
    """The queue before the engine; each of the first three can be overruled by live.json."""

    max_in_flight: Positive = 128
    max_queue: Annotated[int, Field(ge=0)] = 256
    queue_timeout_seconds: Seconds = 30.0
    priority_header: str | None = "x-trimtab-priority"
    """Request header with `high`, `normal` or `low`; null: all requests are alike."""


class ExactCache(_Model):
    """Answers to requests seen before."""

    enabled: bool = True
    max_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    ttl_seconds: Seconds = 3600.0
    max_entry_bytes: Positive = 1024 * 1024
    policy: Literal["deterministic", "all"] = "deterministic"
    """`deterministic`: only greedy or seeded answers, unless the client asks for more; `all`: sampled ones too."""


class RedisCache(_Model):
    """Answers shared between pods."""

    url: str
    timeout_seconds: Seconds = 0.01
    ttl_seconds: Seconds | None = None
    """Default: as the exact cache."""
    prefix: str = "trimtab"


class SemanticCache(_Model):
    """Answers to requests that mean the same; opt-in."""

    enabled: bool = False
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.95
    endpoint: str | None = None
    """Text Embeddings Inference or another server of OpenAI's `/v1/embeddings`."""
    model_path: str | None = None
    """Folder of a static embedding model."""
    tenants: tuple[str, ...] = ()
    """Tenants that opted in; empty: all of them."""
    max_entries: Positive = 10_000
    timeout_seconds: Seconds = 0.03


class Cache(_Model):
    """All tiers of the response cache."""

    exact: ExactCache = ExactCache()
    redis: RedisCache | None = None
    semantic: SemanticCache = SemanticCache()
    secret: str | None = None
    """Keyed hashing of request identities, so that a shared store cannot be searched for guessed prompts."""


class Context(_Model):
    """What happens to a prompt that is longer than the model's window."""

    policy: Literal["reject", "truncate", "slidingWindow", "summarize", "hierarchical"] = "reject"
    max_input_tokens: Positive | None = None
    """Default: the engine's own `/info`."""
    max_total_tokens: Positive | None = None
    tokenizer_path: str | None = None
    """tokenizer.json or its folder; without it the engine's `/tokenize` is asked."""
    keep_last_turns: Positive = 2
    low_water: Annotated[float, Field(gt=0, le=1)] = 0.75
    """A window that overflows is cut down to this share of its budget, so that it is not cut again at each turn."""
    summary_max_tokens: Positive = 256


class Tenancy(_Model):
    """Who a request belongs to. Cached answers, queue shares and coalescing never cross tenants."""

    header: str | None = None
    """Header set by a trusted gateway; default: a keyed hash of the Authorization header."""
    shared: bool = False
    """All clients are one tenant. Then a client can find out from timing what others asked."""


class Config(_Model):
    """config.json."""

    upstream: str
    """`http://host:port` of the engine."""
    identity: Identity
    listen: Listen = Listen()
    limits: Limits = Limits()
    engine: Engine = Engine()
    admission: Admission = Admission()
    cache: Cache = Cache()
    context: Context | None = None
    tenancy: Tenancy | None = None
    drain_timeout_seconds: Seconds = 60.0
    """How long requests in flight may take to end after SIGTERM."""


class Live(_Model):
    """live.json; null means the value of config.json."""

    max_in_flight: Positive | None = None
    max_queue: Annotated[int, Field(ge=0)] | None = None
    queue_timeout_seconds: Seconds | None = None


M = TypeVar("M", bound=_Model)


def _validated(model: type[M], text: bytes, name: str) -> M:
    try:
        data: Any = json.loads(text)
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(f"{name}: {where}: {first['msg']}") from error
    except ValueError as error:  # not JSON or not UTF-8
        raise ConfigError(f"{name}: {error}") from error


def parse_config(text: bytes) -> Config:
    """config.json. Raises ConfigError."""
    return _validated(Config, text, "config.json")


def parse_live(text: bytes) -> Live:
    """live.json. Raises ConfigError."""
    return _validated(Live, text, "live.json")
