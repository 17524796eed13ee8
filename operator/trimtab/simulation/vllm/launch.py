"""From the arguments of `vllm serve` to a warmed-up engine, or to the reason why vLLM 0.11 would not start.

Defaults by card: vllm/engine/arg_utils.py; memory: vllm/v1/worker/gpu_worker.py and vllm/v1/core/kv_cache_utils.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.catalog.flags import BadArgument, load_flags
from trimtab.catalog.gpus import GIB, GpuFacts
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.quantization import quantization_of, weight_format
from trimtab.catalog.steptime import StepTimeModel, step_time_model
from trimtab.engines.base import MODEL_KV_DTYPE, EngineSettings
from trimtab.engines.vllm import KV_DTYPES, VllmEngine
from trimtab.plan.engine_memory import vllm_rules
from trimtab.plan.memory import Batch, Footprint, ModelSizes, divide_memory, footprint
from trimtab.simulation.command import FAILURE, USAGE, Arguments, StartupError
from trimtab.simulation.launch import LOAD_BYTES_PER_S, PROCESS_START_S
from trimtab.simulation.vllm.scheduler import CUDA_GRAPHS, VllmSettings

VERSION = (0, 11, 0)
LARGE_CARD_BYTES = 70 * GIB
_LARGE, _SMALL = (8192, 1024), (2048, 256)
"""Tokens of a step and requests at once where no flag says them; A100 counts as small."""
_FORMATS = {"bitsandbytes": "bitsandbytes-nf4", "awq_marlin": "awq", "gptq_marlin": "gptq"}
_KV_FORMATS = {"fp8": "fp8_e4m3fn", **{flag: name for name, flag in KV_DTYPES.items()}}


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that is ready to serve."""

    arguments: Arguments
    model: ModelFacts
    gpu: GpuFacts
    shards: int
    quantization: str
    settings: VllmSettings
    times: StepTimeModel
    boot_s: float
    """Estimated time from start to the first answer, without downloads and compilation."""

    @property
    def served_name(self) -> str:
        """Name by which requests must call the model."""
        return self.arguments.text("--served-model-name") or self.model_id

    @property
    def model_id(self) -> str:
        """As on the command line."""
        return self.arguments.text("--model") or ""


def parse_command(args: Sequence[str], env: Mapping[str, str]) -> Arguments:
    """Arguments after `vllm` or `vllm serve`; raises StartupError with code 2 as argparse would."""
    flags = load_flags("vllm")
    rest = list(args[1:] if args and args[0] == "serve" else args)
    values = {facts.name: None if facts.default is None else _text(facts.default) for facts in flags.flags}
    for facts in flags.flags:
        if facts.env is not None and facts.env in env:
            values[facts.name] = env[facts.env]
    if rest and not rest[0].startswith("-"):
        values["--model"] = rest.pop(0)
    short = {name: facts.flag or name for name, facts in flags.by_short.items()}
    line = flags.parse([short.get(word, word) for word in rest])
    if line.bad:
        raise StartupError(USAGE, f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {_refusal(line.bad)}")
    for argument in line.arguments:
        off = argument.text.startswith("--no-") and argument.facts.type == "negatable"
        values[argument.facts.name] = argument.value or ("false" if off else "true")
    return Arguments(values)


def _text(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _refusal(bad: Sequence[BadArgument]) -> str:
    flags = load_flags("vllm")
    unknown = [wrong.text for wrong in bad if flags.find(wrong.text.split()[0].partition("=")[0]) is None]
    if unknown:
        return f"unrecognized arguments: {' '.join(unknown)}"
    name, _, value = bad[0].text.replace("=", " ").partition(" ")
    if not value:
        return f"argument {name}: expected one argument"
    return f"argument {name}: invalid value: {value!r} ({bad[0].message}; {bad[0].allowed})"


def launch(arguments: Arguments, env: Mapping[str, str], model: ModelFacts, gpu: GpuFacts) -> Launched:
    """Start the engine in thought; raises StartupError with code 1 where the real one would end with an error."""
    shards = arguments.given("--tensor-parallel-size", 1)
    settings = _engine_settings(arguments, env, model, shards)
    problem = VllmEngine().option_problem(settings, model, gpu)
    if problem is not None:
        raise _failure(problem)
    longest = _context(arguments, env, model)
    budget, sequences = _batching(arguments, gpu, longest)
    block = VllmEngine().kv_block_tokens(settings, model, gpu)
    block = arguments.given("--block-size", block)
    kv_bytes = 1 if settings.kv_cache_dtype != MODEL_KV_DTYPE else 2
    held, blocks = _warm_up(arguments, settings, model, gpu, Batch(budget, sequences, longest, kv_bytes), block)
    return Launched(
        arguments=arguments,
        model=model,
        gpu=gpu,
        shards=shards,
        quantization=settings.quantization,
        settings=VllmSettings(
            max_model_len=longest,
            max_num_seqs=sequences,
            max_num_batched_tokens=budget,
            num_gpu_blocks=blocks,
            block_size=block,
            chunked_prefill=_chunks(arguments),
            long_prefill_token_threshold=arguments.given("--long-prefill-token-threshold", 0),
            cuda_graphs=() if arguments.on("--enforce-eager") else CUDA_GRAPHS,
        ),
        times=step_time_model(model, gpu, settings.quantization, shards, kv_bytes),
        boot_s=PROCESS_START_S + held.weights / LOAD_BYTES_PER_S,
    )


def _failure(message: str) -> StartupError:
    return StartupError(
        FAILURE,
        f"ValueError: {message}\nRuntimeError: Engine core initialization failed. See root cause above. "
        "Failed core proc(s): {}",
    )


def _chunks(arguments: Arguments) -> bool:
    return arguments.text("--enable-chunked-prefill") != "false"


def _engine_settings(arguments: Arguments, env: Mapping[str, str], model: ModelFacts, shards: int) -> EngineSettings:
    flag = arguments.text("--quantization")
    cache = arguments.text("--kv-cache-dtype") or "auto"
    return EngineSettings(
        model_id=arguments.text("--model") or "",
        quantization=quantization_of(model.checkpoint) if flag is None else _FORMATS.get(flag, flag),
        kv_cache_dtype=_KV_FORMATS.get(cache, MODEL_KV_DTYPE),
        gpus_per_replica=shards,
        memory_fraction=arguments.real("--gpu-memory-utilization", 0.9),
        env={name: env[name] for name in ("VLLM_ATTENTION_BACKEND",) if name in env},
    )


def _context(arguments: Arguments, env: Mapping[str, str], model: ModelFacts) -> int:
    longest = arguments.given("--max-model-len", model.max_position)
    if longest > model.max_position and env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        raise _failure(
            f"User-specified max_model_len ({longest}) is greater than the derived max_model_len "
            f"(max_position_embeddings={model.max_position} in model's config.json)."
        )
    return longest


def _batching(arguments: Arguments, gpu: GpuFacts, longest: int) -> tuple[int, int]:
    """(tokens of a step, requests at once)."""
    large = gpu.memory_bytes >= LARGE_CARD_BYTES and "a100" not in gpu.id.lower()
    tokens, requests = _LARGE if large else _SMALL
    if not _chunks(arguments):
        tokens = max(tokens, longest)
    budget = arguments.given("--max-num-batched-tokens", tokens)
    sequences = arguments.given("--max-num-seqs", min(requests, budget))
    if budget < longest and not _chunks(arguments):
        raise _failure(
            f"max_num_batched_tokens ({budget}) is smaller than max_model_len ({longest}). This effectively limits the "
            "maximum sequence length to max_num_batched_tokens and makes vLLM reject longer sequences. Please increase "
            "max_num_batched_tokens or decrease max_model_len."
        )
    if budget < sequences:
        raise _failure(
            f"max_num_batched_tokens ({budget}) must be greater than or equal to max_num_seqs ({sequences})."
        )
    return budget, sequences


def _warm_up(
    arguments: Arguments, settings: EngineSettings, model: ModelFacts, gpu: GpuFacts, batch: Batch, block: int
) -> tuple[Footprint, int]:
    """(memory of one GPU, blocks of the KV cache)."""
    accounting = vllm_rules(VERSION, settings.memory_fraction, arguments.real("--cpu-offload-gb", 0.0))
    format_ = weight_format(settings.quantization, model.checkpoint)
    held = footprint(ModelSizes.of(model), format_, settings.gpus_per_replica, accounting, batch)
    if max(held.weights, held.loading) + held.runtime > gpu.memory_bytes:
        raise _failure(
            f"CUDA out of memory. GPU 0 has a total capacity of {gpu.memory_gib:.2f} GiB; "
            f"{max(held.weights, held.loading) / GIB:.2f} GiB are needed for the weights"
        )
    measured = divide_memory(held, gpu.memory_bytes, accounting, batch, block)
    override = arguments.number("--num-gpu-blocks-override")
    blocks = measured.kv_tokens // block if override is None else override
    if measured.kv_bytes <= 0 or blocks <= 0:
        raise _failure(
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
            "engine."
        )
    if blocks * block < batch.max_total_tokens:
        needed = batch.max_total_tokens * held.kv_per_token / GIB
        raise _failure(
            f"To serve at least one request with the models's max seq len ({batch.max_total_tokens}), ({needed:.2f} "
            f"GiB KV cache is needed, which is larger than the available KV cache memory "
            f"({measured.kv_bytes / GIB:.2f} GiB). Based on the available memory, the estimated maximum "
            f"model length is {blocks * block}. Try "
            "increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
        )
    return held, blocks
