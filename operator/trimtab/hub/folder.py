"""Model facts from a folder that holds a model: config.json and the headers of its safetensors files."""

import json
from pathlib import Path
from typing import Any

from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.catalog.hf_config import model_from_config
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.safetensors import (
    LENGTH_BYTES,
    HeaderError,
    TensorSummary,
    header_length,
    parse_header,
    summarize,
)

INDEX = "model.safetensors.index.json"
CONFIG_FIELD = "model-config"


def read_model(path: Path, model_id: str) -> ModelFacts:
    """The facts about a model in a folder, or about a single config.json.

    Raises InvalidSpecError when the file is missing, no JSON, or does not describe a model that can be sized.
    """
    config_path = path / "config.json" if path.is_dir() else path
    config = _read_config(config_path)
    tensors = read_tensors(path) if path.is_dir() else None
    return model_from_config(model_id, config, tensors, field=CONFIG_FIELD)


def read_tensors(folder: Path) -> TensorSummary | None:
    """Sizes of all tensors of a checkpoint; None when the folder has no safetensors files.

    Only files that the index names count: repositories also carry the same weights in other layouts. Raises
    InvalidSpecError when a file is cut off or no safetensors file.
    """
    files = _weight_files(folder)
    try:
        headers = [_read_header(file) for file in files]
    except (HeaderError, OSError) as broken:
        raise InvalidSpecError((FieldError(CONFIG_FIELD, str(folder), f"weights cannot be sized: {broken}"),)) from None
    return summarize(headers) if headers else None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values())
        return [folder / name for name in sorted(names)]
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        length = header_length(file.read(LENGTH_BYTES))
        return parse_header(file.read(length))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as missing:
        raise InvalidSpecError((FieldError(CONFIG_FIELD, str(path), f"cannot be read: {missing.strerror}"),)) from None
    except ValueError as broken:
        raise InvalidSpecError((FieldError(CONFIG_FIELD, str(path), f"is no JSON: {broken}"),)) from None
    if not isinstance(config, dict):
        raise InvalidSpecError(
            (FieldError(CONFIG_FIELD, str(path), "must be the config.json of a model", "an object"),)
        )
    return config
