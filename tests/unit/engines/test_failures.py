"""Log lines that engines end with are recognised, most specific first."""

import re

import pytest

from trimtab.engines.registry import get_engine

LINES = [
    ("tgi", "Not enough memory to handle 4096 prefill tokens. You need to decrease", "WarmupOutOfMemory"),
    ("tgi", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "GpuOutOfMemory"),
    ("tgi", "ValueError: Unsupported model ... make sure the model is already quantized", "CheckpointNotQuantized"),
    ("tgi", "huggingface_hub.errors.GatedRepoError: 401 Client Error.", "ModelAccessDenied"),
    ("tgi", "error: unexpected argument '--foo' found", "BadArguments"),
    ("tgi", "Error: ShardCannotStart", "ShardCannotStart"),
    ("tgi", "AssertionError: Each process is one gpu", "TooFewGpus"),
    (
        "vllm",
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV",
        "ContextDoesNotFit",
    ),
    ("vllm", "ValueError: No available memory for the cache blocks.", "NoMemoryForCache"),
    ("vllm", "vllm serve: error: unrecognized arguments: --foo", "BadArguments"),
    ("vllm", "RuntimeError: Engine core initialization failed. See root cause above.", "EngineStartFailed"),
]


@pytest.mark.parametrize(("engine", "line", "reason"), LINES)
def test_ends_are_recognised(engine, line, reason):
    found = [failure for failure in get_engine(engine).failures if re.search(failure.pattern, line)]
    assert found
    assert found[0].reason == reason
    assert found[0].advice
