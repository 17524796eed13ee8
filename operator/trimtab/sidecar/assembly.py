"""Builds the parts that a configuration asks for."""

import logging
from pathlib import Path

from trimtab.sidecar.cache.entry import make_entry
from trimtab.sidecar.cache.key import CanonicalKeyer
from trimtab.sidecar.cache.memory import LruMemory
from trimtab.sidecar.cache.request import read_call
from trimtab.sidecar.config import Config
from trimtab.sidecar.gateway import Parts
from trimtab.sidecar.interfaces import ContextPolicy, EngineCall, RemoteTier
from trimtab.sidecar.sidecall import SideCaller

log = logging.getLogger(__name__)


def build_parts(config: Config) -> Parts:
    """Everything behind the seam, switched on or off as configured."""
    exact = config.cache.exact
    side = SideCaller()
    context = _context(config, side)
    if not exact.enabled:
        return Parts(read_call=read_call, context=context, side=side)
    keyer = CanonicalKeyer(
        config.identity,
        secret=(config.cache.secret or "").encode(),
        policy=exact.policy,
        partitioned=config.cache.semantic.enabled,
    )
    memory = LruMemory(exact.max_bytes, max_entry_bytes=exact.max_entry_bytes)
    return Parts(
        read_call=read_call,
        keyer=keyer,
        make_entry=make_entry,
        memory=memory,
        remote=_remote(config, keyer.namespace, memory),
        context=context,
        side=side,
    )


def _remote(config: Config, namespace: bytes, memory: LruMemory) -> RemoteTier | None:
    if config.cache.redis is None:
        return None
    from trimtab.sidecar.cache.redis import RedisTier  # imported by those who use it: it takes 0.2 s

    return RedisTier(
        config.cache.redis,
        namespace=namespace,
        secret=(config.cache.secret or "").encode(),
        max_entry_bytes=config.cache.exact.max_entry_bytes,
        on_invalidated=memory.clear,
    )


def _context(config: Config, engine: EngineCall) -> ContextPolicy | None:
    if config.context is None:
        return None
    from trimtab.sidecar.context.counting import Counter, EngineCounter, load_counter  # imported by those who use it
    from trimtab.sidecar.context.policy import WindowPolicy

    counter: Counter = EngineCounter(engine)
    if config.context.tokenizer_path is not None:
        try:
            counter = load_counter(Path(config.context.tokenizer_path))
        except (OSError, ValueError) as error:
            log.warning("no tokenizer (the engine is asked to count instead): %s", error)
    return WindowPolicy(config.context, counter, engine)
