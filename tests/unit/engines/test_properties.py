"""What holds for every combination of settings, models and GPUs of the catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.flags import load_flags
from trimtab.engines.base import BatchSettings, EngineSettings
from trimtab.engines.registry import ENGINES, get_engine

CATALOGUE = load_catalogue()
NUMBERS = st.none() | st.integers(1, 200_000)
EXTRA = st.lists(
    st.sampled_from(
        [
            *("--max-best-of=3", "--dtype=float16", "--cuda-memory-fraction=0.5", "--speculate=2", "--json-output"),
            *("--otlp-service-name=a b", "--nonsense", "--gpu-memory-utilization=0.5", "--no-enable-prefix-caching"),
            *("--hf-overrides={}", "--usage-stats=on", "--lora-adapters=a,b@c", "--port=1", "--api-key=hunter2"),
        ]
    ),
    max_size=4,
)
ENV = st.builds(
    lambda plain, secret: plain | secret,
    st.dictionaries(
        st.sampled_from(["NCCL_DEBUG", "PREFIX_CACHING", "PREFILL_CHUNKING", "ATTENTION", "MAX_BEST_OF", "X"]),
        st.sampled_from(["0", "1", "true", "paged", "flashinfer", "3"]),
        max_size=3,
    ),
    st.dictionaries(st.sampled_from(["HF_TOKEN", "API_KEY", "VLLM_API_KEY"]), st.just("hunter2"), max_size=1),
)
SETTINGS = st.builds(
    EngineSettings,
    model_id=st.just("org/name"),
    revision=st.none() | st.just("main"),
    quantization=st.sampled_from(sorted({name for engine in ENGINES.values() for name in engine.quantizations})),
    dtype=st.none() | st.just("float16"),
    kv_cache_dtype=st.sampled_from(["model", "fp8_e4m3fn", "fp8_e5m2"]),
    gpus_per_replica=st.sampled_from([1, 2, 4, 8]),
    max_input_tokens=NUMBERS,
    max_total_tokens=NUMBERS,
    batching=st.builds(
        BatchSettings,
        max_batch_size=NUMBERS,
        max_batch_prefill_tokens=NUMBERS,
        max_batch_total_tokens=NUMBERS,
        waiting_served_ratio=st.none() | st.floats(0.1, 4),
        max_waiting_tokens=NUMBERS,
        max_concurrent_requests=NUMBERS,
        prefill_chunking=st.none() | st.booleans(),
    ),
    memory_fraction=st.none() | st.floats(0.1, 1),
    prefix_caching=st.none() | st.booleans(),
    speculate=st.none() | st.integers(0, 4),
    trust_remote_code=st.booleans(),
    extra_args=EXTRA.map(tuple),
    env=ENV,
)
MODELS, GPUS = st.sampled_from(CATALOGUE.models), st.sampled_from(CATALOGUE.gpus)
BOTH = pytest.mark.parametrize("name", sorted(ENGINES))


@BOTH
@given(settings=SETTINGS, model=MODELS, gpu=GPUS)
def test_a_launch_without_errors_is_a_command_line_that_the_engine_reads(name, settings, model, gpu):
    engine = get_engine(name)
    launch = engine.launch(settings, model, gpu)
    sentences = [finding.sentence() for finding in launch.findings]
    assert all(finding.field.startswith("spec.") for finding in launch.findings)
    assert not any("hunter2" in sentence for sentence in sentences)
    if launch.errors:
        return
    args = list(launch.args)
    if name == "vllm":
        assert args.pop(0) == "org/name"
    line = load_flags(name).parse(args)
    assert line.bad == ()
    written = [argument.facts.name for argument in line.arguments]
    assert len(written) == len(set(written))
    assert all(launch.env.values())
    assert engine.option_problem(settings, model, gpu) is None


@BOTH
@given(settings=SETTINGS, model=MODELS, gpu=GPUS)
def test_understanding_changes_no_launch_and_is_done_once(name, settings, model, gpu):
    engine = get_engine(name)
    lifted = engine.understand(settings)
    assert engine.understand(lifted) == lifted
    assert engine.launch(lifted, model, gpu) == engine.launch(settings, model, gpu)


@BOTH
@given(settings=SETTINGS, model=MODELS, gpu=GPUS)
def test_facts_never_fail(name, settings, model, gpu):
    engine = get_engine(name)
    if settings.quantization in engine.quantizations:
        assert engine.kv_cache_dtype(settings, model, gpu) in ("float16", "bfloat16", "fp8_e4m3fn", "fp8_e5m2")
    assert engine.kv_block_tokens(settings, model, gpu) in (1, 16, 64, 256)
    assert engine.chunks_prompts(settings, model, gpu) in (True, False)
    assert engine.image(gpu)
    problem = engine.option_problem(settings, model, gpu)
    assert problem is None or len(problem) > 10
