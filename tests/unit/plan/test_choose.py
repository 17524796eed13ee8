"""What is chosen, and what is said about the rest."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.engines.base import BatchSettings
from trimtab.engines.registry import get_engine
from trimtab.plan.candidates import StepTimes
from trimtab.plan.nearest import with_nearest
from trimtab.plan.performance import calibration_key
from trimtab.plan.types import (
    Calibration,
    PlanRequest,
    PlanResult,
    RejectionKind,
    SloTargets,
)

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
OPTION_KEYS = [
    "model", "engine", "quantization", "gpu", "gpusPerReplica", "kvDtype", "fits", "weightsBytes", "overheadBytes",
    "kvTokens", "maxBatchAtContext", "ttftMs", "tpotMs", "requestsPerSecond", "tokensPerSecond",
    "costPerMillionTokens", "launcherArgs", "env", "reasons",
]  # fmt: skip

Build = Callable[..., PlanRequest]
Plan = Callable[[PlanRequest], PlanResult]


def _fast(tpot: float) -> SloTargets:
    return SloTargets(tpot={0.95: tpot})


def test_the_json_of_an_option_has_the_documented_keys(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA, "L4", "A100-80GB", slo=_fast(0.05)))
    document = result.to_json()
    assert list(document) == ["chosen", "options", "errors"]
    assert list(document["chosen"]) == OPTION_KEYS
    assert all(list(option) == OPTION_KEYS for option in document["options"])
    assert document["options"][0] == document["chosen"]


def test_the_cheapest_of_those_that_work_is_chosen(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA, "L4", "A10G", "A100-80GB", "H100-SXM", slo=_fast(0.05)))
    assert result.plan is not None
    works = [
        option
        for option, why in zip(result.options, result.rejections, strict=True)
        if why is None or why.kind is RejectionKind.DEARER
    ]
    costs = [option.cost_per_million_tokens for option in works]
    assert None not in costs
    assert result.plan.option.cost_per_million_tokens == min(cost for cost in costs if cost is not None)
    assert len(works) > 3


def test_the_same_question_gets_the_same_answer(request_for: Build, planned: Plan) -> None:
    request = request_for(LLAMA, "L4", "A100-80GB", "T4", slo=_fast(0.05))
    assert planned(request).to_json() == planned(request).to_json()


def test_every_option_says_why_not(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA_70B, "T4", "L4", "A100-80GB", "MI300X", "B200", slo=_fast(0.03)))
    rejected = result.rejected
    assert len(rejected) + 1 == len(result.options)
    assert {why.kind for _, why in rejected} >= {RejectionKind.RULE, RejectionKind.MEMORY, RejectionKind.SLO}
    assert all(option.reasons == (why.reason,) for option, why in rejected)


def test_nearer_options_come_first(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA_70B, "L4", "A100-80GB", slo=_fast(0.04)))
    kinds = [why.kind for why in result.rejections if why is not None]
    assert kinds == sorted(kinds)


def test_slow_formats_are_never_chosen_under_an_slo(request_for: Build, planned: Plan) -> None:
    request = request_for(LLAMA, "T4", gpus_per_replica=1, slo=_fast(10), max_total_tokens=2048)
    result = planned(request)
    assert result.plan is None or not result.plan.settings.quantization.startswith("bitsandbytes")
    relaxed = planned(replace(request, slo=SloTargets(), pools=request.pools))
    assert relaxed.plan is not None


def test_a_last_resort_is_taken_when_nothing_else_fits(request_for: Build, planned: Plan) -> None:
    request = request_for("mistralai/Mistral-Small-24B-Instruct-2501", "L4", gpus_per_replica=1, max_total_tokens=4096)
    result = planned(request)
    assert result.plan is not None
    assert result.plan.settings.quantization in ("bitsandbytes-nf4", "bitsandbytes-fp4")
    assert any(reason.startswith("last resort") for reason in result.plan.option.reasons)
    roomy = planned(replace(request, pools=request_for(LLAMA, "A100-80GB").pools))
    assert roomy.plan is not None
    assert not roomy.plan.settings.quantization.startswith("bitsandbytes")


def test_a_format_asked_for_by_name_is_taken(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA, "A100-80GB", quantization="bitsandbytes-nf4", slo=_fast(0.2)))
    assert result.plan is not None
    assert result.plan.settings.quantization == "bitsandbytes-nf4"
    assert "bitsandbytes-nf4" in result.plan.launcher_args


def test_a_ready_made_format_needs_its_checkpoint(request_for: Build, planned: Plan) -> None:
    result = planned(request_for(LLAMA, "A100-80GB", quantization="awq"))
    assert result.plan is None
    assert all(why is not None and why.kind is RejectionKind.RULE for why in result.rejections)
    assert any("checkpoint" in option.reasons[0] for option in result.options)


def test_a_quantized_checkpoint_is_served_as_it_is(planned: Plan, request_for: Build) -> None:
    match = load_catalogue().find_model("hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4")
    assert match is not None
    result = planned(replace(request_for(LLAMA, "L4"), models=(match.model,)))
    assert result.plan is not None
    assert result.plan.settings.quantization == "awq"
    assert result.plan.settings.model_id == match.model.id
    assert any("guessed" in reason for reason in result.plan.option.reasons)


def test_a_lower_quality_floor_opens_formats(request_for: Build, planned: Plan) -> None:
    strict = planned(request_for(LLAMA, "A100-80GB", slo=_fast(0.05), max_quality_loss=0.0))
    assert strict.plan is not None
    assert strict.plan.settings.quantization == "none"
    assert any(why is not None and why.kind is RejectionKind.QUALITY for why in strict.rejections)


def test_of_a_size_the_best_scored_models_compete_on_cost(planned: Plan, request_for: Build) -> None:
    models = load_catalogue().of_size("medium")
    result = planned(replace(request_for(LLAMA, "A100-80GB"), models=models))
    assert result.plan is not None
    best = max(model.quality_index or 0 for model in models)
    assert (result.plan.model.quality_index or 0) >= best - 5
    worst = min(models, key=lambda model: model.quality_index or 0)
    reasons = {why.reason for option, why in result.rejected if option.model == worst.id}
    assert any("scores" in reason for reason in reasons)


def test_what_was_measured_replaces_the_estimate(request_for: Build, planned: Plan) -> None:
    request = request_for(LLAMA, "L4", gpus_per_replica=1, quantization="none", kv_cache_dtype="model")
    key = calibration_key(LLAMA, "none", "L4", 1, "model", "tgi")
    measured = Calibration(key, const_ms=70.0, per_sequence_ms=0.5, per_kv_token_ms=0.001, kv_tokens=30_000, samples=9)
    before, after = planned(request), planned(replace(request, calibrations=(measured,)))
    assert before.plan is not None
    assert after.plan is not None
    assert before.plan.estimate
    assert not after.plan.estimate
    assert after.plan.kv_tokens == 30_000
    assert after.plan.step.const_ms == 70.0
    assert after.plan.calibration_key == key


def test_an_unpriced_gpu_is_taken_only_when_no_priced_one_works(request_for: Build, planned: Plan) -> None:
    both = planned(request_for(LLAMA, "A30", "A100-80GB"))
    assert both.plan is not None
    assert both.plan.option.gpu == "A100-80GB"
    alone = planned(request_for(LLAMA, "A30"))
    assert alone.plan is not None
    assert alone.plan.option.cost_per_million_tokens is None


def test_fixed_batching_is_kept_and_limits_the_batch(request_for: Build, planned: Plan) -> None:
    fixed = BatchSettings(max_batch_size=7, max_batch_prefill_tokens=2048)
    result = planned(request_for(LLAMA, "A100-80GB", batching=fixed))
    assert result.plan is not None
    assert result.plan.max_batch_within_slo <= 7
    args = result.plan.launcher_args
    assert args[args.index("--max-batch-prefill-tokens") + 1] == "2048"


def test_prompts_stay_within_the_prefill_budget_where_they_cannot_be_cut(request_for: Build, planned: Plan) -> None:
    result = planned(request_for("google/gemma-3-27b-it", "A100-80GB"))
    assert result.plan is not None
    budget = result.plan.settings.batching.max_batch_prefill_tokens
    assert budget is not None
    assert result.plan.max_input_tokens <= budget
    asked = planned(request_for("google/gemma-3-27b-it", "H200", max_input_tokens=16_000))
    assert asked.plan is not None
    assert asked.plan.settings.batching.max_batch_prefill_tokens == 16_000


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("spec.hardware.gpusPerReplica", {"gpus_per_replica": 1, "quantization": "none"}),
        ("spec.quantization", {"gpus_per_replica": 4, "quantization": "none"}),
        ("spec.context.maxTotalTokens", {"gpus_per_replica": 4, "quantization": "fp8", "max_total_tokens": 130_000}),
        ("spec.slo", {"slo": SloTargets(tpot={0.95: 0.001}), "gpus_per_replica": 8}),
        ("spec.hardware.gpuProducts", {"gpus_per_replica": 1}),
    ],
)
def test_when_nothing_works_the_nearest_that_does_is_named(
    request_for: Build, planned: Plan, steps: StepTimes, field: str, changes: dict[str, object]
) -> None:
    request = replace(
        request_for(LLAMA_70B, "L4", **changes), alternatives=request_for(LLAMA_70B, "H200", "A100-80GB").pools
    )
    result = with_nearest(request, planned(request), get_engine("tgi"), steps)
    assert result.plan is None
    assert result.options
    suggestion = next(error for error in result.errors if error.field == field)
    assert suggestion.allowed
    assert suggestion.value is not None
