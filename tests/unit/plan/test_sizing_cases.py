"""The memory model against what engines reported publicly. `pytest -s` prints each case.

Each case is judged with the accounting of the engine release that it was seen with, and with the settings that it
names; what a case does not name takes the planner's own defaults. Nothing here knows a particular case.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.quantization import canonical, weight_format
from trimtab.engines.base import EngineSettings
from trimtab.plan.candidates import DEFAULT_CONTEXT, DEFAULT_PREFILL_TOKENS, DEFAULT_SEQUENCES
from trimtab.plan.engine_memory import accounting_for, parse_version
from trimtab.plan.memory import GIB, Batch, MemoryEstimate, ModelSizes, divide_memory, footprint

CASES = json.loads((Path(__file__).parent / "data" / "sizing_cases.json").read_text())["cases"]
SCORED = ("fits", "no_fit", "kv_tokens", "kv_blocks", "weights_gib")
VLLM_BLOCK = 16
TGI_PAGED_BLOCK = 16
UNSTATED_VERSION = {"tgi": (3, 3, 7), "vllm": (0, 10)}
VLLM_PREFILL = 2048
"""vLLM's own default of max_num_batched_tokens on most cards of these cases."""


@dataclass(frozen=True)
class Verdict:
    """One case, predicted."""

    case: dict[str, Any]
    estimate: MemoryEstimate
    needed_tokens: int

    @property
    def is_fit(self) -> bool:
        return self.case["kind"] in ("fits", "no_fit")

    @property
    def predicted(self) -> float:
        match self.case["kind"]:
            case "fits" | "no_fit":
                return float(self.estimate.kv_tokens >= self.needed_tokens)
            case "kv_tokens":
                return self.estimate.kv_tokens
            case "kv_blocks":
                return self.estimate.kv_tokens / VLLM_BLOCK
        return self.estimate.footprint.weights / GIB

    @property
    def error(self) -> float:
        return self.predicted / float(self.case["value"]) - 1

    @property
    def right(self) -> bool:
        return bool(self.predicted) is bool(self.case["value"])

    def line(self) -> str:
        case = self.case
        shown = ("right" if self.right else "WRONG") if self.is_fit else f"{self.error:+.1%}"
        where = f"{case['n']}x{case['gpu']}"
        return (
            f"{case['id']} {case['confidence']:6} {case['engine']:10} {case['kind']:11} {shown:>8}  "
            f"{case['model']} {case['quant']} {where} observed {case['value']} predicted {self.predicted:.6g}"
        )


def judge(case: dict[str, Any]) -> Verdict | None:
    """The prediction for a case; None when the model or the kind is not one that is sized."""
    match = load_catalogue().find_model(case["model"])
    if match is None or case["kind"] not in SCORED:
        return None
    model, inputs = match.model, case["inputs"]
    engine = "tgi" if case["engine"] == "tgi" else "vllm"
    stated = case["engine_version"] or ""
    version = parse_version("" if stated.startswith("20") else stated, UNSTATED_VERSION[engine])
    extra = ("--cpu-offload-gb", str(inputs["cpu_offload_gb"])) if "cpu_offload_gb" in inputs else ()
    settings = EngineSettings("model", memory_fraction=inputs.get("util"), extra_args=extra)
    accounting = accounting_for(engine, version, settings)
    needed = inputs.get("max_model_len") or min(model.max_position, DEFAULT_CONTEXT)
    prefill = DEFAULT_PREFILL_TOKENS if engine == "tgi" else VLLM_PREFILL
    batch = Batch(
        prefill_tokens=inputs.get("max_batch_prefill_tokens") or inputs.get("max_num_batched_tokens") or prefill,
        sequences=inputs.get("max_num_seqs", DEFAULT_SEQUENCES),
        max_total_tokens=needed,
        kv_bytes_per_element=1 if inputs.get("kv_dtype") == "fp8" else 2,
    )
    gpu = load_catalogue().gpu(case["gpu"])
    memory = int(inputs["total_gib"] * GIB) if "total_gib" in inputs else gpu.memory_bytes if gpu else 80 * GIB
    block = VLLM_BLOCK if engine == "vllm" else TGI_PAGED_BLOCK if version < (3,) else 1
    format_ = weight_format(canonical(case["quant"]), model.checkpoint)
    held = footprint(ModelSizes.of(model), format_, case["n"], accounting, batch)
    return Verdict(case, divide_memory(held, memory, accounting, batch, block), needed)


VERDICTS = [verdict for verdict in map(judge, CASES) if verdict is not None]


def test_every_scorable_case_is_scored() -> None:
    unscored = {case["id"]: case["kind"] for case in CASES} | {verdict.case["id"]: "" for verdict in VERDICTS}
    kinds = {kind for kind in unscored.values() if kind}
    assert kinds <= {"guidance", "kv_tokens_info", "kv_tokens_suspect"}


def test_fit_verdicts_are_right_in_95_percent_of_the_high_confidence_cases() -> None:
    fits = [verdict for verdict in VERDICTS if verdict.is_fit]
    print(*(verdict.line() for verdict in fits), sep="\n")
    high = [verdict for verdict in fits if verdict.case["confidence"] == "high"]
    wrong = [verdict.case["id"] for verdict in high if not verdict.right]
    print(f"high confidence: {len(high) - len(wrong)} of {len(high)} right")
    assert len(high) >= 15
    assert len(wrong) <= 0.05 * len(high), wrong


def test_kv_capacity_is_within_10_percent_at_the_median() -> None:
    capacities = [verdict for verdict in VERDICTS if verdict.case["kind"] in ("kv_tokens", "kv_blocks")]
    print(*(verdict.line() for verdict in capacities), sep="\n")
    high = [abs(verdict.error) for verdict in capacities if verdict.case["confidence"] == "high"]
    everything = [abs(verdict.error) for verdict in capacities]
    print(f"median error: {statistics.median(high):.1%} high confidence, {statistics.median(everything):.1%} all")
    assert statistics.median(high) <= 0.10
    assert statistics.median(everything) <= 0.10


@pytest.mark.parametrize(
    "verdict",
    [verdict for verdict in VERDICTS if verdict.case["kind"] == "weights_gib"],
    ids=lambda verdict: verdict.case["id"],
)
def test_weights_are_within_2_percent(verdict: Verdict) -> None:
    print(verdict.line())
    assert abs(verdict.error) <= 0.02
