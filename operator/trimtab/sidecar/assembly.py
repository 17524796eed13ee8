"""Builds the parts that a configuration asks for. Those switched off are not imported."""

import logging
from collections.abc import Callable
from pathlib import Path
from time import time
from urllib.parse import urlsplit

from trimtab.sidecar.cache.entry import make_entry
from trimtab.sidecar.cache.key import CanonicalKeyer
from trimtab.sidecar.cache.memory import LruMemory
from trimtab.sidecar.cache.request import read_call
from trimtab.sidecar.config import Config, ConfigError
from trimtab.sidecar.gateway import Parts
from trimtab.sidecar.head import SEMANTIC_MARK
from trimtab.sidecar.interfaces import ContextPolicy, EngineCall, Entry, Key, RemoteTier, SemanticTier
from trimtab.sidecar.sidecall import ServerCaller, SideCaller

log = logging.getLogger(__name__)


def build_parts(config: Config) -> Parts:
    """Everything behind the seam, switched on or off as configured. Raises ConfigError."""
    exact, semantic = config.cache.exact, config.cache.semantic
    side = SideCaller()
    context = _context(config, side)
    if not exact.enabled:
        return Parts(read_call=read_call, context=context, side=side)
    keyer = CanonicalKeyer(
        config.identity,
        secret=_secret(config),
        policy=exact.policy,
        partitioned=_opted_in(semantic.tenants) if semantic.enabled else None,
    )
    memory = LruMemory(exact.max_bytes, max_entry_bytes=exact.max_entry_bytes)
    remote = _remote(config, keyer.namespace, memory)
    return Parts(
        read_call=read_call,
        keyer=keyer,
        make_entry=make_entry,
        memory=memory,
        remote=remote,
        semantic=_semantic(config, memory, remote),
        context=context,
        side=side,
    )


def _secret(config: Config) -> bytes:
    return (config.cache.secret or "").encode()


def _opted_in(tenants: tuple[str, ...]) -> Callable[[bytes], bool]:
    return (lambda scope: scope.endswith(SEMANTIC_MARK)) if tenants else (lambda scope: True)


def _remote(config: Config, namespace: bytes, memory: LruMemory) -> RemoteTier | None:
    if config.cache.redis is None:
        return None
    from trimtab.sidecar.cache.redis import RedisTier

    return RedisTier(
        config.cache.redis,
        namespace=namespace,
        secret=_secret(config),
        max_entry_bytes=config.cache.exact.max_entry_bytes,
        on_invalidated=memory.clear,
    )


def _semantic(config: Config, memory: LruMemory, remote: RemoteTier | None) -> SemanticTier | None:
    wanted = config.cache.semantic
    if not wanted.enabled:
        return None
    from trimtab.sidecar.cache.embedding import Embedder, EmbeddingError, ServerEmbedder, StaticEmbedder
    from trimtab.sidecar.cache.semantic import SemanticSearch

    async def lookup(key: Key) -> Entry | None:
        entry = memory.get(key, time())
        return entry if entry is not None or remote is None else await remote.get(key)

    embedder: Embedder
    if wanted.model_path is not None:
        try:
            embedder = StaticEmbedder(Path(wanted.model_path))
        except (EmbeddingError, OSError) as error:
            raise ConfigError(f"config.json: cache.semantic.modelPath: {error}") from error
    elif wanted.endpoint is not None:
        parts = urlsplit(wanted.endpoint)
        caller = ServerCaller(f"{parts.scheme}://{parts.netloc}", config.engine)
        path = parts.path if parts.path.strip("/") else "/v1/embeddings"
        embedder = ServerEmbedder(caller, path=path, on_close=caller.close)
    else:
        raise ConfigError("config.json: cache.semantic: needs modelPath or endpoint")
    return SemanticSearch(wanted, embedder, lookup)


def _context(config: Config, engine: EngineCall) -> ContextPolicy | None:
    if config.context is None:
        return None
    from trimtab.sidecar.context.counting import Counter, EngineCounter, load_counter
    from trimtab.sidecar.context.policy import WindowPolicy

    counter: Counter = EngineCounter(engine)
    if config.context.tokenizer_path is not None:
        try:
            counter = load_counter(Path(config.context.tokenizer_path))
        except (OSError, ValueError) as error:
            log.warning("no tokenizer (the engine is asked to count instead): %s", error)
    return WindowPolicy(config.context, counter, engine)
