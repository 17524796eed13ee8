"""How each engine's releases divide GPU memory: the values of MemoryAccounting, by engine and version.

TGI: `warmup` in server/text_generation_server/models/flash_causal_lm.py and utils/import_utils.py at each git tag.
vLLM: gpu_worker and utils/mem_utils of each release. The constants marked "fitted" describe public start-up logs; the
logs are tests/unit/plan/data/sizing_cases.json, the fit is discussed in docs/planner.md.
"""

import re
from collections.abc import Sequence

from trimtab.engines.base import EngineSettings
from trimtab.plan.memory import GIB, MemoryAccounting

TGI_RUNTIME_BYTES = int(0.45 * GIB)
"""CUDA context, kernels, workspaces: fitted."""
TGI_SHARD_BYTES = int(0.6 * GIB)
"""NCCL buffers: fitted."""
TGI_PREFILL_LOGITS_BYTES = 7.0
"""Prompt logits and their softmax before 3.0; logs give 6.3 to 8.5: fitted."""
VLLM_RUNTIME_BYTES = int(0.3 * GIB)
"""Non-torch memory; logs give 0.05 to 0.6 GiB."""
VLLM_SAMPLER_BYTES = 40.0
"""Dry run of the sampler, for each sequence and vocabulary entry: fitted on six logs, within 3 %."""

# Share of memory that KV cache and all the rest may take, from this release on.
_TGI_OF_TOTAL = (((3, 3), 0.90), ((3, 1), 0.93), ((3, 0), 0.95))
_TGI_OF_FREE = (((2, 4), 0.90), ((1, 4, 3), 0.95), ((0,), 1.0))
_VLLM_UTILIZATION = (((0, 22), 0.92), ((0,), 0.90))

Version = tuple[int, ...]


def parse_version(text: str | None, default: Version) -> Version:
    """`3.3.7`, `v0.11.0`, `2.x` → numbers; the default when there is none."""
    match = re.search(r"\d+(?:\.\d+)*", text or "")
    return tuple(int(part) for part in match[0].split(".")) if match else default


def tgi_rules(version: Version, memory_fraction: float = 1.0, wiggle: float | None = None) -> MemoryAccounting:
    """Text Generation Inference; `memory_fraction` is `--cuda-memory-fraction`, `wiggle` is TGI_WIGGLE_ROOM."""
    of_total = _since(version, _TGI_OF_TOTAL)
    if of_total is not None:
        return MemoryAccounting(
            usable_of_total=memory_fraction * (wiggle or of_total),
            runtime_bytes=TGI_RUNTIME_BYTES,
            shard_bytes=TGI_SHARD_BYTES,
            tied_head_twice=True,
        )
    return MemoryAccounting(
        usable_of_total=memory_fraction,
        usable_of_free=wiggle or _since(version, _TGI_OF_FREE) or 1.0,
        runtime_bytes=TGI_RUNTIME_BYTES,
        shard_bytes=TGI_SHARD_BYTES,
        prefill_logits_bytes=TGI_PREFILL_LOGITS_BYTES,
        tied_head_twice=True,
    )


def vllm_rules(version: Version, utilization: float | None = None, offload_gib: float = 0.0) -> MemoryAccounting:
    """vLLM; `utilization` is `--gpu-memory-utilization`, `offload_gib` is `--cpu-offload-gb`.

    Latent attention is cached compressed since 0.7.1, sliding windows are freed since 0.11 (hybrid KV cache manager),
    long prompts are prefilled in chunks since 0.6.
    """
    return MemoryAccounting(
        usable_of_total=utilization or _since(version, _VLLM_UTILIZATION) or 0.9,
        runtime_bytes=VLLM_RUNTIME_BYTES,
        sampler_bytes=VLLM_SAMPLER_BYTES,
        pads_vocabulary=True,
        replicates_kv_heads=True,
        quantizes_when_loaded=True,
        compresses_latent=version >= (0, 7, 1),
        frees_window=version >= (0, 11),
        offloaded_bytes=int(offload_gib * GIB),
        profiles_whole_context=version < (0, 6),
    )


def accounting_for(engine: str, version: Version, settings: EngineSettings) -> MemoryAccounting:
    """The accounting of an engine's release under settings that the engine has understood."""
    if engine == "vllm":
        offload = _number(flag_value(settings.extra_args, "--cpu-offload-gb"))
        return vllm_rules(version, settings.memory_fraction, offload or 0.0)
    return tgi_rules(version, settings.memory_fraction or 1.0, _number(settings.env.get("TGI_WIGGLE_ROOM")))


def flag_value(args: Sequence[str], flag: str) -> str | None:
    """Value of a flag on a command line, written `--flag value` or `--flag=value`; None when it is not there."""
    for position, argument in enumerate(args):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(args):
            return args[position + 1]
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value and value > 0 else None


def _since(version: Version, table: tuple[tuple[Version, float], ...]) -> float | None:
    for first, value in table:
        if version >= first:
            return value
    return None
