"""Which GPUs the node seems to have."""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import pytest

from devcluster import gpus
from devcluster.gpus import PRODUCTS, Gpus, choose
from devcluster.paths import ClusterError


def test_the_first_time_eight_of_the_default(tmp_path: Path) -> None:
    assert choose(tmp_path, None, None, None, None) == Gpus("NVIDIA-L4", 8, 23034, "8.9")


def test_what_is_not_said_stays_as_it_was(tmp_path: Path) -> None:
    before = Gpus("Own-GPU", 3, 1000, "8.0")
    (tmp_path / "gpus.json").write_text(json.dumps(asdict(before)))
    assert choose(tmp_path, None, None, None, None) == before
    assert choose(tmp_path, None, 5, None, None) == Gpus("Own-GPU", 5, 1000, "8.0")
    assert choose(tmp_path, "NVIDIA-L4", None, None, None) == Gpus("NVIDIA-L4", 3, 23034, "8.9")


def test_an_unknown_product_needs_its_facts(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="--gpu-memory-mib"):
        choose(tmp_path, "Own-GPU", 1, None, "8.0")
    assert choose(tmp_path, "Own-GPU", 1, 1000, "8.0") == Gpus("Own-GPU", 1, 1000, "8.0")


def test_labels_are_those_of_gpu_feature_discovery() -> None:
    offered = gpus.known("NVIDIA-A100-SXM4-80GB", 8)
    assert offered is not None
    labels = offered.labels()
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-A100-SXM4-80GB"
    assert labels["nvidia.com/gpu.family"] == "ampere"
    assert (labels["nvidia.com/gpu.compute.major"], labels["nvidia.com/gpu.compute.minor"]) == ("8", "0")
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.memory"]) == ("8", "81920")


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_table_agrees_with_the_catalogue(product: str) -> None:
    """The catalogue has what CUDA sees, which is a little less than the label: the driver keeps some."""
    listed = json.loads((files("trimtab.catalog") / "data" / "gpus.json").read_text())["gpus"]
    fact = next(gpu for gpu in listed if product in gpu["product_labels"])
    memory_mib, capability = PRODUCTS[product]
    assert float(capability) == fact["compute_capability"]
    assert 0.94 < fact["memory_gib"] * 1024 / memory_mib <= 1.0
