"""The command line of Text Generation Inference: what is written, and from where."""

from trimtab.catalog.flags import load_flags
from trimtab.engines.base import BatchSettings, EngineSettings
from trimtab.engines.tgi import FORBIDDEN, RESERVED


def pairs(args):
    """Flag → value of a command line without switches."""
    return dict(zip(args[::2], args[1::2], strict=True))


def test_the_shortest_launch_names_model_shards_and_port(tgi, model, gpu):
    launch = tgi.launch(EngineSettings(model_id=model.id), model, gpu)
    assert launch.findings == ()
    assert pairs(launch.args) == {
        "--model-id": model.id,
        "--num-shard": "1",
        "--port": "8000",
        "--usage-stats": "off",
        "--graceful-termination-timeout": "90",
    }
    assert dict(launch.env) == {}


def test_every_setting_reaches_the_command_line(tgi, model, gpu):
    settings = EngineSettings(
        model_id=model.id,
        revision="abc123",
        quantization="none",
        dtype="float16",
        kv_cache_dtype="fp8_e5m2",
        gpus_per_replica=2,
        max_input_tokens=4000,
        max_total_tokens=5000,
        batching=BatchSettings(
            max_batch_size=16,
            max_batch_prefill_tokens=8192,
            max_batch_total_tokens=100_000,
            waiting_served_ratio=1.2,
            max_waiting_tokens=7,
            max_concurrent_requests=64,
            prefill_chunking=False,
        ),
        memory_fraction=0.8,
        prefix_caching=False,
        speculate=2,
        trust_remote_code=True,
    )
    launch = tgi.launch(settings, model, gpu)
    assert launch.errors == ()
    assert "--trust-remote-code" in launch.args
    written = pairs([arg for arg in launch.args if arg != "--trust-remote-code"])
    assert written == {
        "--model-id": model.id,
        "--revision": "abc123",
        "--num-shard": "2",
        "--port": "8000",
        "--dtype": "float16",
        "--kv-cache-dtype": "fp8_e5m2",
        "--max-input-tokens": "4000",
        "--max-total-tokens": "5000",
        "--max-batch-size": "16",
        "--max-batch-prefill-tokens": "8192",
        "--max-batch-total-tokens": "100000",
        "--waiting-served-ratio": "1.2",
        "--max-waiting-tokens": "7",
        "--max-concurrent-requests": "64",
        "--cuda-memory-fraction": "0.8",
        "--speculate": "2",
        "--usage-stats": "off",
        "--graceful-termination-timeout": "90",
    }
    assert dict(launch.env) == {"PREFILL_CHUNKING": "0", "PREFIX_CACHING": "0"}


def valid_value(facts):
    """Some value that the flag accepts."""
    special = {"--hostname": "::", "--lora-adapters": "acme/lora", "--master-port": "29501"}
    if facts.name in special:
        return special[facts.name]
    if facts.choices:
        return facts.choices[0]
    return {"boolean": "true", "number": "0.5", "port": "9001", "unsigned": "4", "unsigned-list": "1,2"}.get(
        facts.type, "value"
    )


def test_every_flag_is_reachable_or_refused_with_the_field_to_use(tgi, model, gpu):
    """No flag of the list falls through: it has a field, is refused for a reason, or passes through extraArgs."""
    for facts in load_flags("tgi").flags:
        extra = (facts.flag,) if not facts.takes_value else (facts.flag, valid_value(facts))
        launch = tgi.launch(EngineSettings(model_id=model.id, extra_args=extra), model, gpu)
        if facts.flag in RESERVED or facts.flag in FORBIDDEN or facts.secret:
            assert launch.errors, facts.flag
            assert facts.flag not in launch.args or facts.flag in ("--model-id", "--num-shard", "--port")
            continue
        assert launch.errors == (), facts.flag
        assert launch.args.count(facts.flag) == 1
        if facts.takes_value:
            assert launch.args[launch.args.index(facts.flag) + 1] == valid_value(facts)


def test_every_variable_is_reachable_or_refused(tgi, model, gpu):
    flags = load_flags("tgi")
    for name, facts in flags.by_env.items():
        if facts.name in RESERVED or facts.name in FORBIDDEN or facts.secret or name == "USE_FLASH_ATTENTION":
            continue
        value = "true" if facts.type == "switch" else valid_value(facts)
        launch = tgi.launch(EngineSettings(model_id=model.id, env={name: value}), model, gpu)
        assert launch.errors == (), name
        assert name in launch.env, name


def test_unknown_variables_pass_through(tgi, model, gpu):
    launch = tgi.launch(EngineSettings(model_id=model.id, env={"NCCL_DEBUG": "INFO"}), model, gpu)
    assert launch.findings == ()
    assert launch.env["NCCL_DEBUG"] == "INFO"


def test_a_value_with_blanks_goes_into_a_variable_because_the_entrypoint_splits_arguments(tgi, model, gpu):
    settings = EngineSettings(model_id=model.id, extra_args=("--otlp-service-name", "my service"))
    launch = tgi.launch(settings, model, gpu)
    assert launch.errors == ()
    assert "--otlp-service-name" not in launch.args
    assert launch.env["OTLP_SERVICE_NAME"] == "my service"


def test_telemetry_can_be_switched_on(tgi, model, gpu):
    launch = tgi.launch(EngineSettings(model_id=model.id, extra_args=("--usage-stats=no-stack",)), model, gpu)
    assert pairs(launch.args)["--usage-stats"] == "no-stack"


def test_a_longer_graceful_timeout_lengthens_the_drain(tgi, model, gpu):
    settings = EngineSettings(model_id=model.id, extra_args=("--graceful-termination-timeout", "300"))
    assert pairs(tgi.launch(settings, model, gpu).args)["--graceful-termination-timeout"] == "300"
    drain = tgi.drain(settings)
    assert drain.graceful_seconds == 300
    assert drain.termination_grace_seconds > 300


def test_understanding_lifts_what_the_planner_must_see_and_changes_nothing_of_the_launch(tgi, model, gpu):
    written = EngineSettings(
        model_id=model.id,
        extra_args=("--cuda-memory-fraction=0.5", "--max-best-of", "3", "--dtype", "bfloat16", "--speculate", "0"),
        env={"PREFIX_CACHING": "0", "PREFILL_CHUNKING": "true", "NCCL_DEBUG": "INFO"},
    )
    lifted = tgi.understand(written)
    assert (lifted.memory_fraction, lifted.dtype, lifted.speculate) == (0.5, "bfloat16", 0)
    assert (lifted.prefix_caching, lifted.batching.prefill_chunking) == (False, True)
    assert lifted.extra_args == ("--max-best-of", "3")
    assert dict(lifted.env) == {"NCCL_DEBUG": "INFO"}
    assert tgi.launch(written, model, gpu) == tgi.launch(lifted, model, gpu)


def test_the_longest_prompt_is_stated_when_only_the_total_is_set(tgi, model, gpu):
    launch = tgi.launch(EngineSettings(model_id=model.id, max_total_tokens=2048), model, gpu)
    assert launch.findings == ()
    assert pairs(launch.args)["--max-input-tokens"] == "2047"


def test_images_by_vendor(tgi, gpu):
    rocm = gpu.model_copy(update={"vendor": "amd", "compute_capability": None})
    gaudi = gpu.model_copy(update={"vendor": "intel", "resource": "habana.ai/gaudi"})
    assert tgi.image(gpu).endswith(":3.3.7")
    assert tgi.image(rocm).endswith(":3.3.7-rocm")
    assert tgi.image(gaudi).endswith(":3.3.7-gaudi")
