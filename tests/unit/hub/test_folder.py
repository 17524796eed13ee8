"""Reading a mounted model folder."""

import json
from pathlib import Path

import pytest

from trimtab.api.errors import InvalidSpecError
from trimtab.hub.folder import read_model, read_tensors

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 128,
}  # fmt: skip


def _weights(path: Path, size: int) -> None:
    header = json.dumps({"t": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_only_files_of_the_index_count(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002", "model-00002-of-00002", "consolidated.00", "other"):
        _weights(tmp_path / f"{name}.safetensors", 100)
    everything = read_tensors(tmp_path)
    assert everything is not None
    assert everything.total_bytes == 300
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    indexed = read_tensors(tmp_path)
    assert indexed is not None
    assert indexed.total_bytes == 200


def test_a_folder_without_weights_is_sized_by_its_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_tensors(tmp_path) is None
    facts = read_model(tmp_path, "own/model")
    assert facts.checkpoint_bytes is None
    assert facts.confidence == "medium"


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}"])
def test_a_broken_config_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidSpecError) as refused:
        read_model(tmp_path, "own/model")
    assert all(error.field.startswith("model-config") for error in refused.value.errors)


def test_cut_off_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(InvalidSpecError, match="weights cannot be sized"):
        read_model(tmp_path, "own/model")
