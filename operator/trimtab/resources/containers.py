"""The two containers of a pod.

The sidecar is a native one (an init container that keeps running): it starts before the engine and, when the pod ends,
is told to stop only after the engine has ended. The engine's preStop hook asks the sidecar to drain: it goes on serving
until nodes send no new connections and nothing is queued or in flight. Only then is the engine told to stop, because
from that moment it accepts nothing more (TGI) or breaks off what it is working on (vLLM).
"""

from collections.abc import Mapping
from math import ceil

from trimtab.api.schema import parse_quantity
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.engines.base import ContainerFacts, Drain, Engine, ProbeAdvice
from trimtab.plan.types import ServingPlan
from trimtab.resources.identity import Manifest
from trimtab.resources.security import engine_security, sidecar_security
from trimtab.resources.sidecar_config import ENGINE_PORT, METRICS_PORT, SERVE_PORT
from trimtab.resources.volumes import engine_mounts, model_claim, sidecar_mounts

DOWNLOAD_BYTES_PER_SECOND = 50e6
"""Slowest download for which the startup probe waits: a weak node's share of its link."""
SIDECAR_OVERHEAD_BYTES = 512 * 2**20
"""On top of the cache: interpreter, connections, and request bodies in flight (256 MiB at most)."""
CACHE_BOOKKEEPING = 1.25
"""Memory of a cached byte with keys and object headers."""
SIDECAR_STOP_SECONDS = 5
DRAIN_PATH = "/drain"
_ENGINE_FLOOR = {"cpu": "100m", "memory": "512Mi"}
_SIDECAR_REQUESTS = {"cpu": "50m", "memory": "128Mi"}


def startup_seconds(plan: ServingPlan, facts: ContainerFacts) -> int:
    """How long a pod may take until the engine answers: its own start, and the download of 16-bit weights."""
    weights = plan.option.weights_bytes * plan.option.gpus_per_replica
    shrunk = 16 / 4 if plan.option.quantization != "none" else 1
    return facts.startup.period * facts.startup.failure_threshold + ceil(weights * shrunk / DOWNLOAD_BYTES_PER_SECOND)


def engine_container(spec: LLMDeploymentSpec, plan: ServingPlan, engine: Engine) -> Manifest:
    """The container `engine`."""
    facts = engine.container
    container: Manifest = {
        "name": "engine",
        "image": spec.engine.image or engine.image(plan.pool.gpu),
        "imagePullPolicy": "IfNotPresent",
        "args": list(plan.launcher_args),
        "env": engine_env(spec, plan, facts),
        "ports": [{"name": "engine", "containerPort": ENGINE_PORT, "protocol": "TCP"}],
        "resources": _engine_resources(spec, plan),
        "volumeMounts": engine_mounts(spec, facts),
        "startupProbe": _startup_probe(facts, startup_seconds(plan, facts)),
        "readinessProbe": _http_probe(facts.health_path, "engine", facts.readiness),
        "livenessProbe": _http_probe(facts.health_path, "engine", facts.liveness),
        # By number: names of ports are looked up in the hook's own container only.
        "lifecycle": {"preStop": {"httpGet": {"path": DRAIN_PATH, "port": METRICS_PORT}}},
        "securityContext": engine_security(facts, spec.engine.run_as_non_root),
        # The controller reads why an engine ended from the last lines of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if facts.command:
        container["command"] = list(facts.command)
    return container


def engine_env(spec: LLMDeploymentSpec, plan: ServingPlan, facts: ContainerFacts) -> list[Manifest]:
    """Variables of the engine, sorted by name. Variables that are not set are left out, never empty."""
    plain: dict[str, str] = {"HF_HOME": facts.cache_dir}
    if spec.engine.run_as_non_root:
        plain["HOME"] = facts.writable.get("tmp", facts.cache_dir)
    if model_claim(spec) is not None:
        plain["HF_HUB_OFFLINE"] = "1"
    entries: dict[str, Manifest] = {
        name: {"name": name, "value": value} for name, value in {**plain, **plan.env}.items()
    }
    token = spec.model.token_secret_ref
    if token is not None:
        entries[facts.token_env] = _secret_variable(facts.token_env, token.name, token.key)
    for variable in spec.engine.env:
        reference = variable.secret_key_ref
        if reference is not None:
            entries[variable.name] = _secret_variable(variable.name, reference.name, reference.key)
    return [entries[name] for name in sorted(entries)]


def _secret_variable(name: str, secret: str, key: str) -> Manifest:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _engine_resources(spec: LLMDeploymentSpec, plan: ServingPlan) -> Manifest:
    gpus = {plan.pool.gpu.resource: str(plan.option.gpus_per_replica)}
    template = spec.pod_template
    return {
        "requests": _sorted(_ENGINE_FLOOR | dict(template.limits) | dict(template.requests) | gpus),
        "limits": _sorted(dict(template.limits) | gpus),
    }


def sidecar_container(spec: LLMDeploymentSpec, image: str) -> Manifest:
    """The container `sidecar`."""
    exact = spec.cache.exact
    cache = parse_quantity(exact.max_bytes) if exact.enabled else 0
    memory = ceil((SIDECAR_OVERHEAD_BYTES + CACHE_BOOKKEEPING * cache) / 2**20)
    return {
        "name": "sidecar",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "ports": [
            {"name": "http", "containerPort": SERVE_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        # No CPU limit: throttling would add its period to the latency of every stream.
        "resources": {"requests": dict(_SIDECAR_REQUESTS), "limits": {"memory": f"{memory}Mi"}},
        "volumeMounts": sidecar_mounts(),
        "startupProbe": _http_probe("/healthz", "metrics", ProbeAdvice(period=1, timeout=2, failure_threshold=60)),
        "readinessProbe": _http_probe("/readyz", "metrics", ProbeAdvice(period=2, timeout=5, failure_threshold=2)),
        "livenessProbe": _http_probe("/healthz", "metrics", ProbeAdvice(period=10, timeout=5, failure_threshold=3)),
        "securityContext": sidecar_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def termination_grace_seconds(drain: Drain) -> int:
    """The drain, the engine's own end, and a little for the sidecar, which ends last."""
    return drain.termination_grace_seconds + SIDECAR_STOP_SECONDS


def _startup_probe(facts: ContainerFacts, seconds: int) -> Manifest:
    advice = facts.startup
    threshold = ceil(seconds / advice.period)
    return _http_probe(facts.health_path, "engine", ProbeAdvice(advice.period, advice.timeout, threshold))


def _http_probe(path: str, port: str, advice: ProbeAdvice) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": advice.period,
        "timeoutSeconds": advice.timeout,
        "failureThreshold": advice.failure_threshold,
    }


def _sorted(quantities: Mapping[str, str]) -> dict[str, str]:
    return dict(sorted(quantities.items()))
