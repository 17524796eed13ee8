import pytest

from trimtab.catalog.catalogue import load_catalogue
from trimtab.simulation.command import StartupError, parse_command
from trimtab.simulation.launch import find_shards, launch

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
AWQ = "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"


def started(args: str, gpu: str = "A100-80GB", env: dict[str, str] | None = None, model: str = LLAMA):
    arguments = parse_command(["--model-id", model, *args.split()], env or {})
    found = load_catalogue().find_model(model)
    return launch(arguments, env or {}, found.model, load_catalogue().gpu(gpu))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--max-batch-tokens 5", "unexpected argument '--max-batch-tokens' found"),
        ("5", "unexpected argument '5' found"),
        ("--port 70000", "invalid value '70000' for '--port <PORT>': 70000 is not in 0..=65535"),
        ("--num-shard two", "invalid value 'two' for '--num-shard <NUM_SHARD>': invalid digit found in string"),
        ("--num-shard -1", "a value is required for '--num-shard <NUM_SHARD>'"),
        ("--quantize int3", "[possible values: awq, compressed-tensors"),
        ("--waiting-served-ratio high", "invalid float literal"),
        ("--port 80 --port 81", "'--port <PORT>' cannot be used multiple times"),
        ("--json-output=true", "unexpected value 'true' for '--json-output' found"),
        ("--max-batch-prefill-tokens 5000000000", "number too large to fit in target type"),
        ("--ngrok", "--ngrok-authtoken <NGROK_AUTHTOKEN>"),
    ],
)
def test_a_command_line_that_clap_refuses_ends_with_code_2(args, message):
    with pytest.raises(StartupError) as refused:
        parse_command(args.split(), {})
    assert message in str(refused.value)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"TRUST_REMOTE_CODE": "True"}, "invalid value 'True' for '--trust-remote-code'"),
        ({"NUM_SHARD": ""}, "cannot parse integer from empty string"),
        ({"QUANTIZE": ""}, "[possible values:"),
        ({"PROMETHEUS_PORT": "tcp://10.0.0.1:9090"}, "invalid digit found in string"),
    ],
)
def test_variables_are_read_as_strictly_as_flags(env, message):
    with pytest.raises(StartupError, match="error: ") as refused:
        parse_command([], env)
    assert message in str(refused.value)


def test_a_flag_wins_over_its_variable_and_that_over_the_default():
    assert parse_command([], {}).number("--max-concurrent-requests") == 128
    assert parse_command([], {"MAX_CONCURRENT_REQUESTS": "7"}).number("--max-concurrent-requests") == 7
    both = parse_command(["--max-concurrent-requests=9"], {"MAX_CONCURRENT_REQUESTS": "7"})
    assert both.number("--max-concurrent-requests") == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--max-input-tokens 10 --max-input-length 10", "Both `max_input_tokens` (10)"),
        ("--max-input-tokens 4096 --max-total-tokens 4096", "must be < `max_total_tokens`"),
        ("--max-total-tokens 9000 --max-batch-total-tokens 8000", "Given: 9000 and 8000"),
        ("--validation-workers 0", "`validation_workers` must be > 0"),
        ("--num-shard 0", "`num_shard` cannot be < 1"),
        ("--num-shard 3", "`num_heads` must be divisible by `num_shards`"),
        ("--sharded true", "NotEnoughCUDADevices"),
        ("--sharded true --num-shard 1", "`sharded` is true but `num_shard` <= 1"),
        ("--dtype float16 --quantize eetq", "Only 1 can be set between `dtype` and `quantize`"),
        ("--quantize awq", "Cannot load `awq` weight, make sure the model is already quantized"),
        ("--max-batch-size 0", "`max_batch_size` must be > 0"),
        ("--max-total-tokens 600000 --max-input-tokens 1000", "Not enough memory to handle"),
    ],
)
def test_what_the_launcher_the_shard_or_the_router_refuses_ends_with_code_1(args, message):
    with pytest.raises(StartupError) as refused:
        started(args)
    assert message in str(refused.value)
    assert refused.value.code == 1


def test_a_model_that_does_not_fit_runs_out_of_memory():
    with pytest.raises(StartupError, match="CUDA out of memory"):
        started("", model="meta-llama/Llama-3.3-70B-Instruct")
    assert started("--num-shard 4", model="meta-llama/Llama-3.3-70B-Instruct").settings.capacity_tokens > 100_000


def test_a_prefill_budget_beyond_the_memory_is_told_as_tgi_tells_it():
    with pytest.raises(StartupError, match="Not enough memory to handle 60000 prefill tokens"):
        started("--max-batch-prefill-tokens 60000 --max-input-tokens 1000 --max-total-tokens 2000", gpu="L4")


def test_without_chunking_the_budget_must_hold_the_longest_prompt():
    args = "--max-batch-prefill-tokens 1000 --max-input-tokens 2000 --max-total-tokens 3000"
    assert started(args).settings.chunking
    with pytest.raises(StartupError, match=r"must be >= `max_input_tokens`\. Given: 1000 and 2000"):
        started(args, env={"PREFILL_CHUNKING": "0"})


def test_visible_devices_decide_the_shards_when_no_flag_does():
    nothing = parse_command([], {})
    assert find_shards(nothing, {}) == 1
    assert find_shards(nothing, {"NVIDIA_VISIBLE_DEVICES": "all"}) == 1
    assert find_shards(nothing, {"CUDA_VISIBLE_DEVICES": "0,1"}) == 2
    assert find_shards(parse_command(["--sharded", "false"], {}), {"CUDA_VISIBLE_DEVICES": "0,1"}) == 1
    with pytest.raises(StartupError, match="Each process is one gpu"):
        started("--num-shard 4", env={"CUDA_VISIBLE_DEVICES": "0,1"})


def test_defaults_come_from_the_warm_up():
    settings = started("").settings
    # 90 % of 79.15 GiB, less weights, runtime and activations, at 128 KiB a token.
    assert 400_000 < settings.capacity_tokens < 450_000
    assert settings.max_total_tokens == 131_072, "the model's context, which fits"
    assert settings.max_input_tokens == settings.max_total_tokens - 1
    assert settings.chunking
    assert settings.prefix_caching
    small = started("", gpu="L4").settings
    assert small.max_total_tokens == small.capacity_tokens < 131_072


def test_flags_change_what_the_engine_does():
    base = "--max-total-tokens 4096 --max-input-tokens 3000 --max-batch-prefill-tokens 4096"
    plain = started(base)
    assert started(f"{base} --cuda-memory-fraction 0.5").settings.capacity_tokens < plain.settings.capacity_tokens / 2
    fp8_cache = started(f"{base} --kv-cache-dtype fp8_e4m3fn")
    assert fp8_cache.settings.capacity_tokens == pytest.approx(2 * plain.settings.capacity_tokens, rel=0.01)
    assert fp8_cache.times.kv_token_ms < plain.times.kv_token_ms
    eetq = started(f"{base} --quantize eetq")
    assert eetq.times.decode_ms(1, 0) < plain.times.decode_ms(1, 0)
    assert eetq.settings.capacity_tokens > plain.settings.capacity_tokens
    assert started(f"{base} --speculate 2").settings.chunking is False
    assert started(f"{base} --cuda-graphs 0").settings.cuda_graphs == ()
    assert started(f"{base} --quantize bitsandbytes").settings.cuda_graphs == ()
    four = started("--num-shard 4", model="meta-llama/Llama-3.3-70B-Instruct")
    eight = started("--num-shard 8", model="meta-llama/Llama-3.3-70B-Instruct")
    assert eight.times.decode_ms(1, 0) < four.times.decode_ms(1, 0)


def test_a_quantized_checkpoint_needs_no_flag():
    launched = started("", model=AWQ)
    assert launched.quantization == "awq"
    assert launched.weights_bytes < started("").weights_bytes / 2
    assert launched.boot_s < started("").boot_s


def test_padded_models_use_their_token_budget():
    settings = started(
        "--max-batch-total-tokens 20000 --max-batch-prefill-tokens 4096", env={"USE_FLASH_ATTENTION": "false"}
    ).settings
    assert not settings.paged
    assert settings.capacity_tokens == 20_000
