"""From spec and plan to what the tuner keeps."""

from trimtab.api.spec import LLMDeploymentSpec
from trimtab.plan.types import ServingPlan, SloTargets
from trimtab.tuning.types import Mode, Objectives

DEFAULT_ENGINE_CONCURRENCY = 128
"""TGI's max_concurrent_requests when nothing sets it."""
DEFAULT_PREFILL_BUDGET = 4096
"""TGI's max_batch_prefill_tokens when it can derive none from GPU and model."""


def build_objectives(
    spec: LLMDeploymentSpec, plan: ServingPlan | None, cold_start_s: float = 120.0, tick_s: float = 15.0
) -> Objectives:
    """Objectives of a deployment; without a plan the fallback law acts on measurements alone."""
    slo = SloTargets(ttft=spec.slo.ttft.seconds(), tpot=spec.slo.tpot.seconds(), latency=spec.slo.latency.seconds())
    mode: Mode = spec.tuning.mode.value
    batching = plan.settings.batching if plan else None
    concurrency = batching.max_concurrent_requests if batching else spec.batching.max_concurrent_requests
    budget = batching.max_batch_prefill_tokens if batching else spec.batching.max_batch_prefill_tokens
    return Objectives(
        slo=slo,
        mode=mode,
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        fixed_replicas=spec.replicas,
        price_per_replica_hour=plan.cost_per_hour if plan else None,
        max_hourly_cost=spec.scaling.max_hourly_cost,
        min_in_flight=spec.tuning.limits.min_in_flight,
        max_in_flight=spec.tuning.limits.max_in_flight,
        engine_concurrency=concurrency or DEFAULT_ENGINE_CONCURRENCY,
        kv_tokens=plan.kv_tokens if plan else None,
        step=plan.step if plan else None,
        planned_limit=plan.max_batch_within_slo if plan else None,
        prefill_budget=budget or DEFAULT_PREFILL_BUDGET,
        cold_start_s=cold_start_s,
        tick_s=tick_s,
    )
