import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.catalog.steptime import step_time_model

LLAMA_8B, LLAMA_7B, LLAMA_13B = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
)
LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"


def test_a_measured_pair_returns_the_measured_kernels():
    model = step_time_model(LLAMA_8B, "A100-80GB")
    assert not model.estimate
    assert model.gemm_ms(32) == pytest.approx(10.69)
    assert model.gemm_ms(8192) == pytest.approx(451.487)
    # Host 1.0 + 0.02, kernels 10.512 + 0.66, attention 0.7211 + 1000 tokens.
    assert model.decode_ms(1, 1000) == pytest.approx(1.02 + 10.512 + 0.66 + 0.7211 + 0.08333)


def test_decode_agrees_with_an_independent_measurement_of_a_13b_model_on_a100():
    # DistServe's profile of OPT-13B on A100-80G fp16 (LLMServe/DistServe, profiler-a100-80g.distserve.json):
    # 19.9 + 0.000627 x context tokens + 0.0385 x batch, without host time of ours.
    model = step_time_model(LLAMA_13B, "A100-80GB")
    for batch, context in ((1, 500), (16, 8000), (64, 32000)):
        published = 19.9347 + 0.00062694 * context + 0.038507 * batch
        assert model.decode_ms(batch, context) == pytest.approx(published, rel=0.15)
    assert model.linear().per_prefill_token_ms == pytest.approx(0.0926, rel=0.1)


def test_scaling_reproduces_a_gpu_that_was_measured_but_is_not_in_the_data():
    # microsoft/vidur data/profiling/compute/a40/meta-llama/Llama-2-7b-hf/mlp.csv, composed for 32 layers.
    measured = {1: 23.936, 32: 26.448, 512: 71.104, 2048: 259.488, 4096: 526.192}
    model = step_time_model(LLAMA_7B, "A40")
    assert model.estimate
    for tokens, milliseconds in measured.items():
        assert model.gemm_ms(tokens) == pytest.approx(milliseconds, rel=0.25)


def test_unlisted_pairs_are_marked_as_estimates_with_what_they_come_from():
    model = step_time_model(LLAMA_8B, "A10G")
    assert model.estimate
    assert model.source.startswith("scaled from")
    assert step_time_model(LLAMA_8B, "L4").estimate, "L4 entries are scaled by their publisher"


@pytest.mark.parametrize("gpu", [gpu.id for gpu in load_catalogue().gpus])
def test_every_gpu_has_plausible_times(gpu):
    for quantization in ("none", "awq", "eetq", "fp8", "compressed-tensors", "bitsandbytes-nf4"):
        model = step_time_model(LLAMA_8B, gpu, quantization)
        facts = load_catalogue().gpu(gpu)
        quarter = {"none": 1.0, "awq": 0.25}.get(quantization, 0.25)
        fastest = 14e9 * quarter / (facts.bandwidth_gb_s * 1e6)
        assert model.decode_ms(1, 0) > fastest
        assert model.prefill_ms([2048]) > model.prefill_ms([512]) > 0


def test_every_model_has_a_model_on_one_and_eight_gpus():
    for model in load_catalogue().models:
        for gpus in (1, 8):
            times = step_time_model(model, "H100-SXM", "none", gpus)
            assert 0 < times.decode_ms(1, 100) < times.decode_ms(64, 100_000)


def test_faster_memory_decodes_faster_and_more_arithmetic_prefills_faster():
    slow, fast = step_time_model(LLAMA_8B, "A100-40GB"), step_time_model(LLAMA_8B, "A100-80GB")
    assert slow.decode_ms(8, 8000) > fast.decode_ms(8, 8000)
    assert slow.prefill_ms([4096]) == pytest.approx(fast.prefill_ms([4096]), rel=0.05), "same tensor cores"


def test_weight_only_quantization_speeds_up_decode_but_not_prefill():
    plain, four_bits = step_time_model(LLAMA_8B, "A100-80GB"), step_time_model(LLAMA_8B, "A100-80GB", "awq")
    assert four_bits.decode_ms(1, 500) < 0.7 * plain.decode_ms(1, 500)
    assert four_bits.prefill_ms([2048]) >= plain.prefill_ms([2048])


@pytest.mark.parametrize(
    ("name", "gpus", "gpu"),
    [
        (LLAMA_8B, 1, "A100-80GB"),
        (LLAMA_8B, 1, "H100-SXM"),
        (LLAMA_8B, 1, "H200"),
        (LLAMA_13B, 1, "H100-SXM"),
        (LLAMA_70B, 4, "A100-80GB"),
        (LLAMA_70B, 4, "H100-SXM"),
        (LLAMA_70B, 8, "H100-SXM"),
    ],
)
@pytest.mark.parametrize("quantization", ["awq", "eetq"])
def test_weight_only_kernels_do_not_prefill_faster_than_16_bits(name, gpus, gpu, quantization):
    # Also where they were scaled from another GPU: they compute in 16 bits all the same.
    plain, weight_only = step_time_model(name, gpu, "none", gpus), step_time_model(name, gpu, quantization, gpus)
    assert not plain.estimate
    assert weight_only.gemm_ms(4096) >= 0.98 * plain.gemm_ms(4096)


def test_eight_bit_floats_without_such_tensor_cores_are_an_estimate_on_weight_only_kernels():
    fp8, eetq = step_time_model(LLAMA_8B, "A100-80GB", "fp8"), step_time_model(LLAMA_8B, "A100-80GB", "eetq")
    assert fp8.gemm == pytest.approx(eetq.gemm, rel=0.01)
    assert fp8.estimate
    assert not eetq.estimate


def test_an_eight_bit_cache_halves_the_reads_of_decode_attention():
    whole, half = step_time_model(LLAMA_8B, "A100-80GB"), step_time_model(LLAMA_8B, "A100-80GB", kv_bytes_per_element=1)
    assert half.kv_token_ms == pytest.approx(whole.kv_token_ms / 2)


def test_shards_without_a_direct_link_pay_for_the_all_reduce():
    with_link = step_time_model(LLAMA_70B, "A100-80GB", "awq", 4)
    without = step_time_model(LLAMA_70B, "L40S", "awq", 4)
    assert without.prefill_ms([2048]) > 1.5 * with_link.prefill_ms([2048])


def test_a_chunked_prompt_costs_the_same_attention_as_a_whole_one():
    model = step_time_model(LLAMA_8B, "A100-80GB")
    squares = 512**2 + (1024**2 - 512**2)
    assert squares == 1024**2
    whole = model.step_ms(0, 0, 1024, 1024.0**2)
    chunks = model.step_ms(0, 0, 512, 512.0**2) + model.step_ms(0, 0, 512, 1024.0**2 - 512.0**2)
    assert whole < chunks


def test_the_linear_form_stays_near_the_model():
    model = step_time_model(LLAMA_8B, "A100-80GB")
    line = model.linear()
    for batch in (1, 16, 64, 128):
        estimate = line.const_ms + line.per_sequence_ms * batch + line.per_kv_token_ms * 500 * batch
        assert estimate == pytest.approx(model.decode_ms(batch, 500 * batch), rel=0.12)


def test_unknown_names_are_lookup_errors():
    with pytest.raises(LookupError, match="no-such-model"):
        step_time_model("no-such-model", "A100-80GB")
    with pytest.raises(LookupError, match="GTX"):
        step_time_model(LLAMA_8B, "GTX")
