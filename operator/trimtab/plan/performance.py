"""From the time of one forward pass to what a replica delivers.

Continuous batching in steady state: with `B` requests in the batch, each of `O` output tokens, `B / O` requests are
replaced in every step, so that each step also carries the prefill of that many prompts of `P` tokens:

    TPOT(B) = decode(B, B x (P + O / 2)) + B / O x prefill(P)
    requests/s = B / (O x TPOT(B)),  tokens/s = B / TPOT(B)
    TTFT(B) = half a step + queueing for the prefill + ceil(P / budget) x decode(B) + prefill(P)

Queueing is that of a queue with one server and a constant service time (Pollaczek-Khinchine). Both times grow with B,
so that an objective is an upper bound on B.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trimtab.plan.types import Load, SloTargets, StepCoefficients

MAX_BATCH = 256
"""Published step times end about here; beyond, matrix products become compute bound and the linear form fails."""

INPUT_SPREAD = MappingProxyType({0.5: 0.88, 0.95: 3.54, 0.99: 3.59})
OUTPUT_SPREAD = MappingProxyType({0.5: 0.61, 0.95: 2.14, 0.99: 2.85})
"""Percentiles of prompt and answer lengths over their mean: Azure LLM inference trace 2023, conversation part."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The load and the engine's prefill, as far as they decide speed."""

    load: Load
    prefill_budget: int
    """Tokens of one prefill pass."""
    max_input_tokens: int
    """Longer prompts do not arrive."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a replica does at a batch size."""

    batch: int
    ttft_ms: float
    tpot_ms: float
    requests_per_second: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class TooSlow:
    """An objective that not even a batch of one meets."""

    metric: str
    percentile: float
    predicted_ms: float
    target_ms: float

    def sentence(self) -> str:
        """Why, with what the objective would have to be."""
        return (
            f"{self.metric} p{self.percentile * 100:g} of {self.predicted_ms:.0f} ms with a batch of one misses "
            f"{self.target_ms:.0f} ms: allow {math.ceil(self.predicted_ms * 1.1):d} ms, or use a faster GPU, more GPUs "
            "per replica or a smaller number format"
        )


def tpot_ms(step: StepCoefficients, work: Workload, batch: float) -> float:
    """Mean time per output token with a full batch."""
    load = work.load
    decode = step.decode_ms(batch, batch * (load.input_tokens + load.output_tokens / 2))
    return decode + batch / load.output_tokens * step.prefill_ms(load.input_tokens)


def ttft_ms(step: StepCoefficients, work: Workload, batch: float, prompt_tokens: float) -> float:
    """Time to first token of a prompt of that length that finds a place in a batch of that size."""
    load = work.load
    decode = step.decode_ms(batch, batch * (load.input_tokens + load.output_tokens / 2))
    service = step.prefill_ms(load.input_tokens)
    arrivals = batch / load.output_tokens
    busy = arrivals * service / (decode + arrivals * service)
    waiting = decode / 2 + busy * service / (2 * (1 - busy))
    passes = math.ceil(prompt_tokens / work.prefill_budget)
    return waiting + passes * decode + step.prefill_ms(prompt_tokens)


def speed_at(step: StepCoefficients, work: Workload, batch: int) -> Speed:
    """What a replica does with a full batch of that size and mean requests."""
    per_token = tpot_ms(step, work, batch)
    tokens = batch / per_token * 1000
    return Speed(
        batch=batch,
        ttft_ms=ttft_ms(step, work, batch, work.load.input_tokens),
        tpot_ms=per_token,
        requests_per_second=tokens / work.load.output_tokens,
        tokens_per_second=tokens,
    )


def largest_batch(step: StepCoefficients, work: Workload, slo: SloTargets, most: int) -> int | TooSlow:
    """The largest batch of at most `most` that keeps every objective, or the first objective that none keeps."""
    batch = min(most, MAX_BATCH)
    for percentile, seconds in slo.tpot.items():
        batch = min(batch, _batch_for_tpot(step, work, seconds * 1000))
        if batch < 1:
            return TooSlow("TPOT", percentile, tpot_ms(step, work, 1), seconds * 1000)
    for metric, targets in (("TTFT", slo.ttft), ("latency", slo.latency)):
        found = _batch_for(step, work, metric, targets, batch)
        if isinstance(found, TooSlow):
            return found
        batch = found
    return batch


def _batch_for_tpot(step: StepCoefficients, work: Workload, target_ms: float) -> int:
    fixed = step.const_ms
    slope = tpot_ms(step, work, 1) - fixed
    if slope <= 0:
        return MAX_BATCH if fixed <= target_ms else 0
    # The margin keeps a batch that meets the target exactly from being lost to rounding.
    return math.floor((target_ms - fixed) / slope + 1e-9)


def _batch_for(
    step: StepCoefficients, work: Workload, metric: str, targets: Mapping[float, float], batch: int
) -> int | TooSlow:
    for percentile, seconds in targets.items():
        target = seconds * 1000
        if _time(step, work, metric, percentile, batch) <= target:
            continue
        alone = _time(step, work, metric, percentile, 1)
        if alone > target:
            return TooSlow(metric, percentile, alone, target)
        low, high = 1, batch
        while high - low > 1:
            middle = (low + high) // 2
            if _time(step, work, metric, percentile, middle) <= target:
                low = middle
            else:
                high = middle
        batch = low
    return batch


def _time(step: StepCoefficients, work: Workload, metric: str, percentile: float, batch: int) -> float:
    prompt = min(work.max_input_tokens, work.load.input_tokens * _spread(INPUT_SPREAD, percentile))
    first = ttft_ms(step, work, batch, prompt)
    if metric == "TTFT":
        return first
    return first + work.load.output_tokens * _spread(OUTPUT_SPREAD, percentile) * tpot_ms(step, work, batch)


def _spread(table: Mapping[float, float], percentile: float) -> float:
    known = table.get(percentile)
    return known if known is not None else table[min(table, key=lambda known: abs(known - percentile))]


def cost_per_million_tokens(price_per_hour: float | None, tokens_per_second: float) -> float | None:
    """Price of a million generated tokens at full load; None without a price."""
    if price_per_hour is None or tokens_per_second <= 0:
        return None
    return price_per_hour / (3600 * tokens_per_second) * 1e6


def calibration_key(model: str, quantization: str, gpu: str, gpus_per_replica: int, kv_dtype: str, engine: str) -> str:
    """Under which measured coefficients are kept and found again."""
    return f"{engine}/{model}/{quantization}/{gpus_per_replica}x{gpu}/{kv_dtype}"
