"""What must hold for every model, GPU and objective, not only for examples."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.quantization import REQUESTABLE, weight_format
from trimtab.engines.base import EngineSettings
from trimtab.engines.registry import ENGINES, get_engine
from trimtab.plan.choose import plan
from trimtab.plan.engine_memory import tgi_rules, vllm_rules
from trimtab.plan.memory import GIB, Batch, MemoryAccounting, ModelSizes, divide_memory, footprint, memory_needed
from trimtab.plan.steps import step_coefficients
from trimtab.plan.types import GpuPool, Option, PlanRequest, PlanResult, SloTargets

CATALOGUE = load_catalogue()
MODELS = st.sampled_from(CATALOGUE.models)
GPUS = st.sampled_from(CATALOGUE.gpus)
FORMATS = st.sampled_from(REQUESTABLE)
MEMORY_GIB = st.floats(min_value=4, max_value=300)
SHARDS = st.sampled_from([1, 2, 4, 8])
ACCOUNTINGS = st.sampled_from(
    [tgi_rules((3, 3, 7)), tgi_rules((3, 0)), tgi_rules((2, 3)), vllm_rules((0, 11)), vllm_rules((0, 4))]
)
BATCHES = st.builds(
    Batch,
    prefill_tokens=st.sampled_from([512, 2048, 4096, 16384]),
    sequences=st.sampled_from([1, 64, 256]),
    max_total_tokens=st.sampled_from([512, 4096, 32768]),
    kv_bytes_per_element=st.sampled_from([1, 2]),
)


def _tokens(
    model: ModelFacts, format_: str, shards: int, gib: float, accounting: MemoryAccounting, batch: Batch, block: int = 1
) -> int:
    held = footprint(ModelSizes.of(model), weight_format(format_, model.checkpoint), shards, accounting, batch)
    return divide_memory(held, int(gib * GIB), accounting, batch, block).kv_tokens


@settings(deadline=None)
@given(MODELS, FORMATS, SHARDS, MEMORY_GIB, st.floats(0, 100), ACCOUNTINGS, BATCHES, st.sampled_from([1, 16, 256]))
def test_more_memory_never_fits_less(
    model: ModelFacts,
    format_: str,
    shards: int,
    gib: float,
    more: float,
    accounting: MemoryAccounting,
    batch: Batch,
    block: int,
) -> None:
    less = _tokens(model, format_, shards, gib, accounting, batch, block)
    assert _tokens(model, format_, shards, gib + more, accounting, batch, block) >= less


@settings(deadline=None)
@given(MODELS, FORMATS, st.sampled_from([(1, 2), (2, 4), (4, 8)]), MEMORY_GIB, ACCOUNTINGS, BATCHES)
def test_more_shards_never_shrink_the_kv_budget(
    model: ModelFacts,
    format_: str,
    shards: tuple[int, int],
    gib: float,
    accounting: MemoryAccounting,
    batch: Batch,
) -> None:
    few, many = shards
    assume(model.num_heads % many == 0)
    assume(accounting.replicates_kv_heads or model.num_kv_heads == 1 or model.num_kv_heads % many == 0)
    fewer = _tokens(model, format_, few, gib, accounting, batch)
    assert _tokens(model, format_, many, gib, accounting, batch) >= fewer


@settings(deadline=None)
@given(MODELS, FORMATS, SHARDS, st.integers(1, 500_000), ACCOUNTINGS, BATCHES)
def test_the_memory_said_to_be_needed_is_enough_and_no_more(
    model: ModelFacts, format_: str, shards: int, tokens: int, accounting: MemoryAccounting, batch: Batch
) -> None:
    held = footprint(ModelSizes.of(model), weight_format(format_, model.checkpoint), shards, accounting, batch)
    needed = memory_needed(held, tokens, accounting, batch)
    assert divide_memory(held, needed + 1024, accounting, batch).kv_tokens >= tokens
    less = needed - 4 * int(held.kv_per_token) - 1024
    assert divide_memory(held, less, accounting, batch).kv_tokens < tokens


@settings(deadline=None)
@given(MODELS, FORMATS, SHARDS, ACCOUNTINGS, BATCHES)
def test_loading_never_takes_less_than_what_is_loaded(
    model: ModelFacts, format_: str, shards: int, accounting: MemoryAccounting, batch: Batch
) -> None:
    held = footprint(ModelSizes.of(model), weight_format(format_, model.checkpoint), shards, accounting, batch)
    plain = footprint(ModelSizes.of(model), weight_format("none", None), shards, accounting, batch)
    assert held.weights <= held.loading
    assert held.loading <= max(held.weights, plain.weights) * 1.5


@settings(deadline=None)
@given(MODELS, SHARDS, MEMORY_GIB, ACCOUNTINGS, BATCHES)
def test_an_fp8_kv_cache_never_holds_less(
    model: ModelFacts, shards: int, gib: float, accounting: MemoryAccounting, batch: Batch
) -> None:
    full = _tokens(model, "none", shards, gib, accounting, replace(batch, kv_bytes_per_element=2))
    assert _tokens(model, "none", shards, gib, accounting, replace(batch, kv_bytes_per_element=1)) >= full


def _pool(gpu: GpuFacts) -> GpuPool:
    return GpuPool(gpu, gpu.gpus_per_node, gpu.price_per_hour)


SMALL_AND_LARGE = [
    model
    for model in CATALOGUE.models
    if model.id
    in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "meta-llama/Llama-3.3-70B-Instruct")
    or model.experts is not None
]
TARGETS = st.one_of(st.none(), st.floats(min_value=0.005, max_value=3.0))


def _slo(ttft: float | None, tpot: float | None, latency: float | None) -> SloTargets:
    return SloTargets(
        ttft={} if ttft is None else {0.95: ttft},
        tpot={} if tpot is None else {0.5: tpot},
        latency={} if latency is None else {0.99: latency},
    )


def _stricter(value: float | None, factor: float) -> float | None:
    return factor if value is None else value * factor


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SMALL_AND_LARGE),
    st.sets(GPUS, min_size=1, max_size=4),
    TARGETS,
    TARGETS,
    TARGETS,
    st.floats(min_value=0.1, max_value=1.0),
    st.sampled_from(sorted(ENGINES)),
)
def test_a_stricter_slo_never_costs_less(
    model: ModelFacts,
    gpus: set[GpuFacts],
    ttft: float | None,
    tpot: float | None,
    latency: float | None,
    factor: float,
    engine: str,
) -> None:
    pools = tuple(_pool(gpu) for gpu in sorted(gpus, key=lambda gpu: gpu.id) if gpu.price_per_hour is not None)
    assume(pools)
    request = PlanRequest(models=(model,), pools=pools, engine=engine, slo=_slo(ttft, tpot, latency))
    lax = _plan(request)
    strict = _plan(
        replace(request, slo=_slo(_stricter(ttft, factor), _stricter(tpot, factor), _stricter(latency, factor)))
    )
    if strict.plan is not None:
        assert lax.plan is not None
        assert _cost(strict) >= _cost(lax) * (1 - 1e-12)


def _plan(request: PlanRequest) -> PlanResult:
    return plan(request, get_engine(request.engine), step_coefficients)


def _cost(result: PlanResult) -> float:
    assert result.plan is not None
    cost = result.plan.option.cost_per_million_tokens
    assert cost is not None
    return cost


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(SMALL_AND_LARGE), GPUS, st.floats(min_value=1.0, max_value=3.0), st.sampled_from(sorted(ENGINES))
)
def test_a_gpu_with_more_memory_never_fits_less(model: ModelFacts, gpu: GpuFacts, factor: float, engine: str) -> None:
    larger = gpu.model_copy(update={"memory_gib": gpu.memory_gib * factor})
    before = _plan(PlanRequest(models=(model,), pools=(_pool(gpu),), engine=engine))
    after = _plan(PlanRequest(models=(model,), pools=(_pool(larger),), engine=engine))
    fits = {_configuration(option): option for option in after.options}
    for option in before.options:
        assert fits[_configuration(option)].fits or not option.fits
        assert fits[_configuration(option)].kv_tokens >= option.kv_tokens


def _configuration(option: Option) -> tuple[str, int, str]:
    return (option.quantization, option.gpus_per_replica, option.kv_dtype)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SMALL_AND_LARGE), GPUS, TARGETS, TARGETS, st.sampled_from(sorted(ENGINES)))
def test_a_chosen_plan_keeps_its_promises(
    model: ModelFacts, gpu: GpuFacts, ttft: float | None, tpot: float | None, engine: str
) -> None:
    result = _plan(PlanRequest(models=(model,), pools=(_pool(gpu),), engine=engine, slo=_slo(ttft, tpot, None)))
    if result.plan is None:
        return
    chosen = result.plan
    assert chosen.option.fits
    assert chosen.max_total_tokens <= chosen.kv_tokens
    assert chosen.max_input_tokens < chosen.max_total_tokens <= model.max_position
    assert chosen.max_batch_within_slo >= 1
    if tpot is not None:
        assert chosen.option.tpot_ms is not None
        assert chosen.option.tpot_ms <= tpot * 1000 * (1 + 1e-6)
    settings_of: EngineSettings = chosen.settings
    launch = get_engine(engine).launch(settings_of, model, gpu)
    assert launch.errors == ()
    assert launch.args == chosen.launcher_args


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_every_rejection_in_the_whole_catalogue_tells_what_to_do(
    engine: str, is_actionable: Callable[[str], bool]
) -> None:
    pools = tuple(_pool(gpu) for gpu in CATALOGUE.gpus)
    slo = SloTargets(tpot={0.95: 0.03})
    silent: set[str] = set()
    for model in CATALOGUE.models:
        result = _plan(PlanRequest(models=(model,), pools=pools, engine=engine, slo=slo, max_total_tokens=8192))
        silent |= {why.reason for _, why in result.rejected if not is_actionable(why.reason)}
    assert silent == set()
