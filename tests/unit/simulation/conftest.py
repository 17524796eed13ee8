import pytest

from trimtab.catalog.steptime import StepTimeModel, step_time_model
from trimtab.simulation.settings import Settings

MODEL, GPU = "meta-llama/Llama-3.1-8B-Instruct", "A100-80GB"


@pytest.fixture(scope="session")
def times() -> StepTimeModel:
    return step_time_model(MODEL, GPU)


@pytest.fixture
def settings() -> Settings:
    return Settings(
        max_input_tokens=4095, max_total_tokens=4096, max_batch_prefill_tokens=1024, capacity_tokens=100_000
    )
