"""The planner's own rules, on top of the engines': each returns a sentence, empty when there is nothing against it."""

from trimtab.catalog.models import ModelFacts
from trimtab.plan.types import GpuPool, PlanRequest

FP8_KV_LOSS = 0.3
"""Points that an FP8 KV cache without calibrated scales is assumed to cost; no published average was found."""
SLOW_FORMATS = frozenset({"bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4"})
"""Decode at 0.15 to 0.6 of the 16-bit speed (bitsandbytes#181, #696), without CUDA graphs."""


def context_problem(request: PlanRequest, model: ModelFacts) -> str:
    """Whether the request asks for more context than the model was made for."""
    total = request.max_total_tokens or (request.max_input_tokens or 0) + 1
    if total <= model.max_position:
        return ""
    return f"{model.id} was made for {model.max_position} tokens: lower maxTotalTokens or take a model with more"


def slow_problem(request: PlanRequest, quantization: str, *, stored: bool) -> str:
    """Whether an objective forbids a format that decodes slowly."""
    if quantization in SLOW_FORMATS and not stored and request.quantization == "auto" and request.slo:
        return f"{quantization} saves memory but decodes slower than 16 bits: never chosen under an SLO; ask for it"
    return ""


def last_resort(request: PlanRequest, quantization: str, kv_dtype: str, *, stored: bool) -> str:
    """Why a format is taken only when nothing else fits; empty: it is an ordinary one."""
    if quantization in SLOW_FORMATS and not stored and request.quantization == "auto":
        return f"{quantization} decodes slower than 16 bits: only when nothing else fits"
    if kv_dtype.startswith("fp8") and request.kv_cache_dtype == "auto":
        return (
            "FP8 KV cache without calibrated scales may cost quality: only when nothing else fits, or set kvCacheDtype"
        )
    return ""


def node_problem(pool: GpuPool, shards: int) -> str:
    """Why that many GPUs of the product cannot form one replica."""
    if shards > 1 and pool.gpu.sliced:
        return "slices of a GPU cannot work together: use one GPU per replica or whole GPUs"
    if shards > pool.gpus_per_node:
        return (
            f"a replica of {shards} GPUs must sit in one node, nodes with {pool.gpu.id} have {pool.gpus_per_node}: "
            f"use at most {pool.gpus_per_node} GPUs per replica"
        )
    return ""
