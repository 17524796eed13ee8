import pytest

from trimtab.catalog.steptime import StepTimeModel, step_time_model
from trimtab.simulation.vllm.scheduler import VllmSettings


@pytest.fixture(scope="session")
def times() -> StepTimeModel:
    return step_time_model("meta-llama/Llama-3.1-8B-Instruct", "H200")


@pytest.fixture
def settings() -> VllmSettings:
    return VllmSettings(max_model_len=4096, max_num_seqs=8, max_num_batched_tokens=512, num_gpu_blocks=1025)
