"""What the operator's process is put together from."""

from pathlib import Path

import pytest
import yaml

from trimtab.catalog.catalogue import load_catalogue
from trimtab.controller.assembly import OperatorFailedError, read_catalogue
from trimtab.controller.settings import Settings


def _added(tmp_path: Path, document: object) -> Settings:
    file = tmp_path / "catalogue.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    return Settings(catalogue_file=file)


def test_without_a_file_the_bundled_catalogue_is_used() -> None:
    assert read_catalogue(Settings()).gpus == load_catalogue().gpus


def test_a_users_gpu_is_planned_with_beside_the_bundled_ones(tmp_path: Path) -> None:
    gpu = {
        "id": "X100",
        "memory_gib": 100,
        "bandwidth_gb_s": 1000,
        "fp16_tflops": 100,
        "compute_capability": 9.0,
        "sources": ["data sheet"],
    }
    catalogue = read_catalogue(_added(tmp_path, {"gpus": [gpu]}))
    assert catalogue.gpu("X100").memory_gib == 100
    assert catalogue.gpu("NVIDIA-L4").id == "L4"


def test_a_wrong_addition_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(OperatorFailedError, match=r"catalogue\.yaml.*memory"):
        read_catalogue(_added(tmp_path, {"gpus": [{"id": "X100", "memory_gib": "much"}]}))
