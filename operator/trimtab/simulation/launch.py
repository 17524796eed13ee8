"""From a command line to a warmed-up engine, or to the reason why TGI 3.3.7 would not start.

launcher/src/main.rs checks flags against each other, server/text_generation_server checks model, GPU and number
formats, backends/v3/src/lib.rs checks what the warm-up found. docs/simulator.md lists what is modelled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from trimtab.catalog.gpus import GIB, GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.parameters import count_parameters
from trimtab.catalog.quantization import NONE, quantization_of, weight_format
from trimtab.catalog.steptime import StepTimeModel, step_time_model
from trimtab.engines.base import MODEL_KV_DTYPE, BatchSettings, EngineSettings
from trimtab.engines.tgi import TgiEngine
from trimtab.engines.tgi_rules import BLOCK_TOKENS, Attention, resolve_attention
from trimtab.plan.engine_memory import tgi_rules
from trimtab.plan.memory import Batch, Footprint, ModelSizes, divide_memory, footprint
from trimtab.simulation.command import FAILURE, Arguments, StartupError
from trimtab.simulation.settings import CUDA_GRAPHS, Settings

VERSION = (3, 3, 7)
PADDED_TOTAL_TOKENS = 16_000
"""Token budget of models without blocks (backends/v3/src/lib.rs)."""
PREFILL_TOKENS = 4096
_FAMILY_PREFILL = {"qwen2_vl": 10_000, "qwen2_5_vl": 10_000, "gemma3": 8_000}
_KNOWN_CARDS = frozenset(
    {"RTX-4090", "T4", "L4", "L40", "L40S", "A10G", "A40", "A100-40GB", "A100-80GB", "H100-SXM", "H100-PCIe", "H200"}
)
"""Cards whose speed the launcher knows, so that it computes the prefill budget (launcher/src/gpu.rs)."""
_NO_GRAPHS = frozenset({"bitsandbytes", "exl2"})

LOAD_BYTES_PER_S = 2e9
"""ESTIMATE: weights into a GPU; ServerlessLLM (arXiv 2401.14351) gives 84 s for the 138 GB of LLaMA-2-70B from a local
disk with safetensors, 1.6 GB/s."""
PROCESS_START_S = 15.0
"""ESTIMATE: Python, torch import, router, CUDA graphs."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that is ready to serve."""

    model_id: str
    model: ModelFacts
    gpu: GpuFacts
    shards: int
    quantization: str
    settings: Settings
    times: StepTimeModel
    attention: Attention
    boot_s: float
    """Estimated time from start to the first answer, without downloads."""
    weights_bytes: int
    """On each GPU."""


def launch(arguments: Arguments, env: Mapping[str, str], model: ModelFacts, gpu: GpuFacts) -> Launched:
    """Start the engine in thought; raises StartupError where the real one would end with an error."""
    _check_lengths(arguments)
    shards = find_shards(arguments, env)
    quantization = arguments.text("--quantize") or quantization_of(model.checkpoint)
    settings = _engine_settings(arguments, env, shards, quantization)
    attention = resolve_attention(settings, model, gpu, lora=arguments.text("--lora-adapters") is not None)
    _check_shard(arguments, env, settings, model, gpu, attention)
    prefill = arguments.number("--max-batch-prefill-tokens") or default_prefill_tokens(model, gpu, shards, settings)
    engine = TgiEngine()
    kv_bytes = 1 if settings.kv_cache_dtype != MODEL_KV_DTYPE else 2
    held, capacity = _warm_up(arguments, settings, model, gpu, attention, prefill, kv_bytes)
    limits = _limits(arguments, model, attention, prefill, capacity)
    return Launched(
        model_id=arguments.text("--model-id") or "",
        model=model,
        gpu=gpu,
        shards=shards,
        quantization=quantization,
        settings=replace(
            limits,
            block_tokens=engine.kv_block_tokens(settings, model, gpu),
            speculate=arguments.given("--speculate", 0),
            cuda_graphs=_graphs(arguments, quantization),
        ),
        times=step_time_model(model, gpu, quantization, shards, kv_bytes),
        attention=attention,
        boot_s=PROCESS_START_S + held.weights / LOAD_BYTES_PER_S,
        weights_bytes=held.weights,
    )


def _validation(message: str) -> StartupError:
    return StartupError(FAILURE, f'Error: ArgumentValidation("{message}")')


def _shard_failure(message: str) -> StartupError:
    return StartupError(
        FAILURE, f"{message}\nERROR text_generation_launcher: Shard 0 failed to start\nError: ShardCannotStart"
    )


def _router_failure(message: str) -> StartupError:
    return StartupError(
        FAILURE, f"Error: Backend({message})\nERROR text_generation_launcher: Webserver Crashed\nError: WebserverFailed"
    )


def _check_lengths(arguments: Arguments) -> None:
    longest, old = arguments.number("--max-input-tokens"), arguments.number("--max-input-length")
    total, budget = arguments.number("--max-total-tokens"), arguments.number("--max-batch-total-tokens")
    if longest is not None and old is not None:
        raise _validation(
            f"Both `max_input_tokens` ({longest}) and `max_input_length` ({old}) are set. Please define only "
            "`max_input_tokens` as `max_input_length is deprecated for naming consistency."
        )
    longest = old if longest is None else longest
    if longest is not None and total is not None and longest >= total:
        raise _validation("`max_input_tokens must be < `max_total_tokens`")
    if arguments.given("--validation-workers", 2) == 0:
        raise _validation("`validation_workers` must be > 0")
    if total is not None and budget is not None and total > budget:
        raise _validation(f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {budget}")
    if arguments.on("--ngrok"):
        raise _router_failure("ngrok feature is not functional")


def find_shards(arguments: Arguments, env: Mapping[str, str]) -> int:
    """Number of shards, as `find_num_shards` of the launcher does."""
    sharded, wanted = arguments.text("--sharded"), arguments.number("--num-shard")
    devices = _devices(env)
    if sharded == "true":
        if wanted is None:
            if devices is None or devices <= 1:
                message = f"`sharded` is true but only found {devices or 0} CUDA devices"
                raise StartupError(FAILURE, f'Error: NotEnoughCUDADevices("{message}")')
            wanted = devices
        elif wanted <= 1:
            raise _validation("`sharded` is true but `num_shard` <= 1")
    elif sharded is None:
        wanted = devices or 1 if wanted is None else wanted
    else:
        wanted = 1 if wanted is None else wanted
    if wanted < 1:
        raise _validation("`num_shard` cannot be < 1")
    if wanted > 1 and arguments.text("--quantize") == "exl2":
        raise _validation("Sharding is currently not supported with `exl2` quantization")
    return wanted


def _devices(env: Mapping[str, str]) -> int | None:
    """Visible devices; None: no variable tells (or only that all are visible)."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        value = env.get(name)
        if value is not None:
            return None if value in ("all", "void") else len(value.split(","))
    return None


def _engine_settings(arguments: Arguments, env: Mapping[str, str], shards: int, quantization: str) -> EngineSettings:
    switches = {"1": True, "true": True, "0": False, "false": False}
    return EngineSettings(
        model_id=arguments.text("--model-id") or "",
        quantization=quantization,
        dtype=arguments.text("--dtype"),
        kv_cache_dtype=arguments.text("--kv-cache-dtype") or MODEL_KV_DTYPE,
        gpus_per_replica=shards,
        batching=BatchSettings(prefill_chunking=switches.get(env.get("PREFILL_CHUNKING", "").lower())),
        memory_fraction=arguments.real("--cuda-memory-fraction", 1.0),
        prefix_caching=switches.get(env.get("PREFIX_CACHING", "").lower()),
        speculate=arguments.number("--speculate"),
        env={name: env[name] for name in ("ATTENTION", "USE_FLASH_ATTENTION", "TGI_WIGGLE_ROOM") if name in env},
    )


def _check_shard(
    arguments: Arguments,
    env: Mapping[str, str],
    settings: EngineSettings,
    model: ModelFacts,
    gpu: GpuFacts,
    attention: Attention,
) -> None:
    quantization, shards = settings.quantization, settings.gpus_per_replica
    visible = _devices(env)
    if visible is not None and shards > visible:
        raise _shard_failure("AssertionError: Each process is one gpu")
    if settings.dtype is not None and quantization != NONE and not quantization.startswith("bitsandbytes"):
        raise _shard_failure(
            "RuntimeError: Only 1 can be set between `dtype` and `quantize`, as they both decide how goes the final"
            " model."
        )
    if attention.prefix_caching and attention.backend == "paged":
        raise _shard_failure("RuntimeError: Prefix caching is only supported with flashinfer")
    if shards > 1 and model.num_heads % shards:
        raise _shard_failure(
            f"ValueError: `num_heads` must be divisible by `num_shards` (got `num_heads`: {model.num_heads} "
            f"and `num_shards`: {shards}"
        )
    problem = TgiEngine().option_problem(settings, model, gpu)
    if problem is None:
        return
    if (
        quantization not in (NONE, quantization_of(model.checkpoint))
        and TgiEngine().quantizations[quantization].checkpoint_methods
        and model.checkpoint is None
    ):
        raise _shard_failure(
            f"RuntimeError: Cannot load `{quantization}` weight, make sure the model is already quantized"
        )
    raise _shard_failure(f"RuntimeError: {problem}")


def default_prefill_tokens(model: ModelFacts, gpu: GpuFacts, shards: int, settings: EngineSettings) -> int:
    """The launcher's own prefill budget: as many tokens as the card computes in a second per operation of the model."""
    parameters = count_parameters(model)
    flops_per_token = 2.0 * (parameters.active_linear + model.vocab_size * model.hidden_size)
    computed = _FAMILY_PREFILL.get(model.family, PREFILL_TOKENS)
    if gpu.id in _KNOWN_CARDS:
        optimal = gpu.fp16_tflops * 1e12 * shards / flops_per_token
        computed = int(optimal) if optimal > 100 else computed
    computed = min(computed, model.max_position)
    if model.checkpoint is None:
        # The card's memory bounds it too: what 95 % of it leaves beside the weights, in tokens of KV cache.
        accounting = tgi_rules(VERSION, 1.0, 0.95)
        batch = Batch(0, 1, model.max_position)
        held = footprint(ModelSizes.of(model), weight_format(settings.quantization, None), shards, accounting, batch)
        tokens = divide_memory(held, gpu.memory_bytes, accounting, batch).kv_tokens
        computed = min(computed, tokens) if tokens > 0 else computed
    return max(1, computed)


def _graphs(arguments: Arguments, quantization: str) -> tuple[int, ...]:
    text = arguments.text("--cuda-graphs")
    if text is None:
        return () if quantization in _NO_GRAPHS else CUDA_GRAPHS
    return tuple(sorted(int(part) for part in text.split(",") if int(part) > 0))


def _warm_up(
    arguments: Arguments,
    settings: EngineSettings,
    model: ModelFacts,
    gpu: GpuFacts,
    attention: Attention,
    prefill: int,
    kv_bytes: int,
) -> tuple[Footprint, int]:
    """(memory of one GPU, tokens of the KV cache): one prefill of the whole budget, then what memory is left."""
    wiggle = settings.env.get("TGI_WIGGLE_ROOM")
    accounting = tgi_rules(VERSION, settings.memory_fraction or 1.0, float(wiggle) if wiggle else None)
    total = arguments.number("--max-total-tokens")
    batch = Batch(prefill, 1, total or model.max_position, kv_bytes)
    format_ = weight_format(settings.quantization, model.checkpoint)
    held = footprint(ModelSizes.of(model), format_, settings.gpus_per_replica, accounting, batch)
    if held.weights + held.runtime > gpu.memory_bytes:
        raise _shard_failure(
            f"torch.OutOfMemoryError: CUDA out of memory. GPU 0 has a total capacity of {gpu.memory_gib:.2f} GiB; "
            f"{held.weights / GIB:.2f} GiB are needed for the weights"
        )
    blocks = _warm_up_tokens(arguments, prefill)
    if held.fixed + blocks * held.kv_per_token > gpu.memory_bytes:
        raise _router_failure(
            f'Warmup(Generation("Not enough memory to handle {prefill} prefill tokens. '
            'You need to decrease `--max-batch-prefill-tokens`"))'
        )
    if not attention.flash:
        default = max(PADDED_TOTAL_TOKENS, total or 0, prefill)
        return held, arguments.number("--max-batch-total-tokens") or default
    block = BLOCK_TOKENS.get(attention.backend, 1)
    measured = divide_memory(held, gpu.memory_bytes, accounting, batch, block).kv_tokens
    return held, max(measured, math.ceil(blocks / block) * block)


def _warm_up_tokens(arguments: Arguments, prefill: int) -> int:
    """Tokens that the warm-up batch reserves: prompts of the longest length until they make up the budget."""
    longest = arguments.number("--max-input-tokens") or arguments.number("--max-input-length")
    total = arguments.number("--max-total-tokens")
    if total is None:
        return prefill + 1
    if longest is None:
        return max(total, prefill + 1)
    most = arguments.number("--max-batch-size")
    prompts = math.ceil(prefill / longest)
    return total * (prompts if most is None else min(prompts, most))


def _limits(arguments: Arguments, model: ModelFacts, attention: Attention, prefill: int, capacity: int) -> Settings:
    """Lengths that requests may have, checked as the router does after the warm-up."""
    total, longest = arguments.number("--max-total-tokens"), arguments.number("--max-input-tokens")
    longest = arguments.number("--max-input-length") if longest is None else longest
    if total is None:
        total = min(capacity, model.max_position) if attention.chunking else min(capacity, prefill + 1)
    if longest is None:
        longest = total - 1
    if total > capacity:
        raise _router_failure(f"NotEnoughMemory: Not enough memory to handle `max_total_tokens={total}`")
    if longest >= total:
        raise _router_failure('ArgumentValidation("`max_input_tokens` must be < `max_total_tokens`")')
    if prefill < longest and not attention.chunking:
        raise _router_failure(
            'ArgumentValidation("`max_batch_prefill_tokens` must be >= `max_input_tokens`. '
            f'Given: {prefill} and {longest}")'
        )
    if prefill > capacity:
        raise _router_failure(
            'ArgumentValidation("`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. '
            f'Given: {prefill} and {capacity}")'
        )
    size = arguments.number("--max-batch-size")
    if size == 0:
        raise _router_failure('ArgumentValidation("`max_batch_size` must be > 0")')
    return Settings(
        max_input_tokens=longest,
        max_total_tokens=total,
        max_batch_prefill_tokens=prefill,
        capacity_tokens=capacity,
        max_concurrent_requests=arguments.given("--max-concurrent-requests", 128),
        max_batch_size=size,
        waiting_served_ratio=arguments.real("--waiting-served-ratio", 0.3),
        max_waiting_tokens=arguments.given("--max-waiting-tokens", 20),
        validation_workers=arguments.given("--validation-workers", 2),
        prefix_caching=attention.prefix_caching,
        chunking=attention.chunking,
        paged=attention.flash,
    )
