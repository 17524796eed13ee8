"""Models and GPUs that the engine tests share; figures do not matter here, only the properties that rules look at."""

from typing import Any

import pytest

from trimtab.catalog.gpus import GpuFacts
from trimtab.catalog.models import CheckpointQuantization, ModelFacts
from trimtab.engines.tgi import TgiEngine


def make_model(**changes: Any) -> ModelFacts:
    """An 8B Llama with 16-bit weights."""
    fields: dict[str, Any] = {
        "id": "acme/llama-8b",
        "family": "llama",
        "num_layers": 32,
        "hidden_size": 4096,
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position": 131072,
        "tied_embeddings": False,
        "sources": ("test",),
    }
    return ModelFacts(**(fields | changes))


def make_gpu(**changes: Any) -> GpuFacts:
    """An 80 GB card of compute capability 8.0."""
    fields: dict[str, Any] = {
        "id": "A100-80GB",
        "compute_capability": 8.0,
        "memory_gib": 79.1,
        "bandwidth_gb_s": 2039,
        "fp16_tflops": 312,
        "sources": ("test",),
    }
    return GpuFacts(**(fields | changes))


def quantized(method: Any, bits: float = 4, **changes: Any) -> ModelFacts:
    """The same model, stored quantized."""
    return make_model(checkpoint=CheckpointQuantization(method=method, bits=bits), **changes)


@pytest.fixture
def model() -> ModelFacts:
    return make_model()


@pytest.fixture
def gpu() -> GpuFacts:
    return make_gpu()


@pytest.fixture
def tgi() -> TgiEngine:
    return TgiEngine()
