"""What goes into the images, and what makes a build new."""

import os
from pathlib import Path

import pytest

from devcluster import images
from devcluster.build import fresh_partial


def test_the_sidecars_image_holds_nothing_of_the_package_but_the_sidecar(tmp_path: Path) -> None:
    images.copy_source("sidecar", tmp_path / "trimtab")
    assert {path.name for path in (tmp_path / "trimtab").iterdir()} <= {"__init__.py", "py.typed", "sidecar"}
    assert (tmp_path / "trimtab" / "sidecar" / "__main__.py").exists()


@pytest.mark.parametrize("target", ["operator", "tgi-sim", "vllm-sim"])
def test_the_other_images_hold_the_package_without_what_python_left(tmp_path: Path, target: str) -> None:
    images.copy_source(target, tmp_path / "trimtab")
    assert (tmp_path / "trimtab" / "catalog" / "data" / "gpus.json").exists()
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_an_interrupted_build_left_is_removed_and_the_rest_stays(tmp_path: Path) -> None:
    for name in ("key.111", "key.222.tar", "other.tar"):
        (tmp_path / name).write_text("")
    (tmp_path / "key.333").mkdir()
    partial = fresh_partial(tmp_path / "key.tar")
    assert partial == tmp_path / f"key.{os.getpid()}"
    assert [path.name for path in tmp_path.iterdir()] == ["other.tar"]
