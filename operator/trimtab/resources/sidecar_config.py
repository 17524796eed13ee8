"""The ConfigMap that tells the sidecar what it serves (config.json) and how much at a time (live.json).

`trimtab.sidecar.config` defines both formats; a contract test holds the two sides together.
"""

import json
from dataclasses import dataclass
from typing import Any

from trimtab.api.schema import parse_duration, parse_quantity
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.engines.registry import get_engine
from trimtab.plan.types import ServingPlan
from trimtab.resources.identity import Manifest, Owner, child_name, metadata

MOUNT_PATH = "/etc/trimtab/sidecar"
SERVE_PORT = 8080
METRICS_PORT = 9100
ENGINE_PORT = 8000


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What may change without a restart; None: the sidecar's default."""

    max_in_flight: int | None = None
    """Requests that the engine works on at a time; None: the plan's largest batch within the SLO."""
    max_queue: int | None = None
    """Requests that wait before it."""
    queue_timeout_seconds: float | None = None
    """How long they may wait."""


def sidecar_config(spec: LLMDeploymentSpec, plan: ServingPlan) -> dict[str, Any]:
    """config.json: depends only on the spec and on what the engine serves, never on what the tuner decides."""
    exact = spec.cache.exact
    drain = get_engine(plan.option.engine).drain(plan.settings)
    return {
        "upstream": f"http://127.0.0.1:{ENGINE_PORT}",
        "identity": {
            "model": plan.model.id,
            "revision": plan.settings.revision or "",
            "quantization": plan.option.quantization,
            "engine": _engine_identity(spec, plan),
            "template": _template_identity(plan),
        },
        "listen": {"host": "0.0.0.0", "port": SERVE_PORT, "metricsPort": METRICS_PORT},  # noqa: S104 - inside a pod
        "cache": {
            "exact": {
                "enabled": exact.enabled,
                "maxBytes": parse_quantity(exact.max_bytes),
                "maxEntryBytes": parse_quantity(exact.max_entry_bytes),
                "ttlSeconds": parse_duration(exact.ttl),
            }
        },
        "drainTimeoutSeconds": drain.pre_stop_seconds + drain.graceful_seconds,
    }


def _engine_identity(spec: LLMDeploymentSpec, plan: ServingPlan) -> str:
    """Engine, image and number format of the KV cache: each changes answers."""
    engine = get_engine(plan.option.engine)
    parts = [f"{engine.name}-{engine.version}", f"kv={plan.option.kv_dtype}", f"shards={plan.option.gpus_per_replica}"]
    return " ".join([*parts, spec.engine.image] if spec.engine.image else parts)


def _template_identity(plan: ServingPlan) -> str:
    """A chat template other than the model's own."""
    args = plan.launcher_args
    for flag in ("--tokenizer-config-path", "--chat-template"):
        if flag in args:
            return args[args.index(flag) + 1]
    return ""


def live_config(plan: ServingPlan, live: LiveSettings) -> dict[str, Any]:
    """live.json.

    The limit never exceeds what the engine accepts, which would answer the rest with 429, nor a fixed batch size, which
    the engine itself may not hold (see `trimtab.engines.tgi_rules`).
    """
    batching = plan.settings.batching
    limit = plan.max_batch_within_slo if live.max_in_flight is None else live.max_in_flight
    bounds = [bound for bound in (batching.max_concurrent_requests, batching.max_batch_size) if bound is not None]
    return {
        "maxInFlight": max(1, min(limit, *bounds)) if bounds else max(1, limit),
        "maxQueue": live.max_queue,
        "queueTimeoutSeconds": live.queue_timeout_seconds,
    }


def build_config_map(owner: Owner, config: dict[str, Any], live: dict[str, Any]) -> Manifest:
    """The ConfigMap with both files."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, "sidecar"),
        "data": {"config.json": _text(config), "live.json": _text(live)},
    }


def config_map_name(owner: Owner) -> str:
    """Name of that ConfigMap."""
    return child_name(owner, "sidecar")


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
