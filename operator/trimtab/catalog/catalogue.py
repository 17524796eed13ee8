"""The catalogue: bundled facts about models and GPUs, and what users add."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, TypeVar

from pydantic import ValidationError

from trimtab.api.errors import FieldError
from trimtab.catalog.gpus import GpuFacts, mig_slice, split_mig_label
from trimtab.catalog.models import ModelFacts
from trimtab.catalog.names import base_name, checkpoint_from_name

Record = TypeVar("Record", ModelFacts, GpuFacts)


class CatalogueError(ValueError):
    """Additions that cannot be used; carries every error."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        self.errors = errors
        super().__init__("; ".join(error.sentence() for error in errors))


@dataclass(frozen=True, slots=True)
class ModelMatch:
    """A model of the catalogue for a repository name."""

    model: ModelFacts
    guessed: bool
    """True: only the name suggests it, so that the facts may be wrong."""


@dataclass(frozen=True)
class Catalogue:
    """Models and GPUs by every name they are known under."""

    models: tuple[ModelFacts, ...]
    gpus: tuple[GpuFacts, ...]

    @cached_property
    def _models(self) -> dict[str, ModelFacts]:
        return _model_index(self.models)

    @cached_property
    def _bases(self) -> dict[str, ModelFacts]:
        return _base_index(self._models)

    @cached_property
    def _gpus(self) -> dict[str, GpuFacts]:
        index: dict[str, GpuFacts] = {}
        for gpu in self.gpus:
            for name in gpu.names:
                index.setdefault(name.lower(), gpu)
        return index

    def model(self, name: str) -> ModelFacts | None:
        """The model listed under this id or alias; None when unlisted."""
        return self._models.get(name.lower())

    def find_model(self, name: str) -> ModelMatch | None:
        """The model under this id or alias, else one whose name differs only by owner and quantization suffix."""
        listed = self.model(name)
        if listed is not None:
            return ModelMatch(listed, guessed=False)
        like = self._bases.get(base_name(name))
        if like is None:
            return None
        checkpoint = checkpoint_from_name(name) or like.checkpoint
        facts = like.model_copy(update={"id": name, "checkpoint": checkpoint, "confidence": "low"})
        return ModelMatch(facts, guessed=True)

    def gpu(self, name: str) -> GpuFacts | None:
        """The product with this catalogue name, alias or node label; None when unknown.

        The label of a MIG slice (`…-MIG-1g.10gb`) gives the slice. A time-sliced GPU (`…-SHARED`) is not found: how
        much of its memory is free depends on the others.
        """
        found = self._gpus.get(name.lower())
        if found is not None:
            return found
        slice_ = split_mig_label(name)
        whole = self._gpus.get(slice_[0].lower()) if slice_ else None
        if slice_ is None or whole is None or f"{slice_[1]}g.{slice_[2]}gb" not in whole.mig_profiles:
            return None
        return mig_slice(whole, slice_[1], slice_[2])

    def of_size(self, size: str) -> tuple[ModelFacts, ...]:
        """Models of a size class, best published score first."""
        of_class = [model for model in self.models if model.size_class == size]
        return tuple(sorted(of_class, key=lambda model: (-(model.quality_index or 0), model.id)))

    def merged(self, additions: Mapping[str, Any]) -> "Catalogue":
        """This catalogue with a user's `models` and `gpus` in front; an addition replaces what has the same id.

        `additions` has the shape of the bundled files: `{"models": [...], "gpus": [...]}`. Raises CatalogueError with
        one FieldError for each thing that is wrong.
        """
        unknown = [
            FieldError(str(key), None, "is not a part of the catalogue", "models, gpus")
            for key in additions
            if key not in ("models", "gpus")
        ]
        models, model_errors = _parse_records(ModelFacts, "models", additions.get("models", []))
        gpus, gpu_errors = _parse_records(GpuFacts, "gpus", additions.get("gpus", []))
        errors = (*unknown, *model_errors, *gpu_errors)
        if errors:
            raise CatalogueError(errors)
        return replace(self, models=_override(models, self.models), gpus=_override(gpus, self.gpus))


@lru_cache(maxsize=1)
def load_catalogue() -> Catalogue:
    """The bundled catalogue; read and validated once."""
    data = resources.files("trimtab.catalog") / "data"
    models = json.loads((data / "models.json").read_text("utf-8"))["models"]
    gpus = json.loads((data / "gpus.json").read_text("utf-8"))["gpus"]
    return Catalogue(
        tuple(ModelFacts.model_validate(record) for record in models),
        tuple(GpuFacts.model_validate(record) for record in gpus),
    )


def model_variant(model: ModelFacts, alias: str, changes: Mapping[str, Any]) -> ModelFacts:
    """The model under an alias that differs in some fields."""
    return ModelFacts.model_validate({**model.model_dump(), **changes, "id": alias, "aliases": (), "variants": {}})


def _model_index(models: Iterable[ModelFacts]) -> dict[str, ModelFacts]:
    index: dict[str, ModelFacts] = {}
    for model in models:
        index.setdefault(model.id.lower(), model)
        for alias in model.aliases:
            facts = model.model_copy(update={"id": alias, "size_class": None})
            if alias in model.variants:
                facts = model_variant(model, alias, model.variants[alias])
            index.setdefault(alias.lower(), facts)
    return index


def _base_index(by_name: Mapping[str, ModelFacts]) -> dict[str, ModelFacts]:
    index: dict[str, ModelFacts] = {}
    for name, facts in by_name.items():
        if facts.checkpoint is None or facts.checkpoint.method == "mxfp4":
            index.setdefault(base_name(name), facts)
    return index


def _parse_records(kind: type[Record], field: str, records: Any) -> tuple[tuple[Record, ...], list[FieldError]]:
    if not isinstance(records, list | tuple):
        return (), [FieldError(field, type(records).__name__, "must be a list", "a list of records")]
    good: list[Record] = []
    errors: list[FieldError] = []
    for position, record in enumerate(records):
        try:
            good.append(kind.model_validate(record))
        except ValidationError as invalid:
            errors.extend(_field_error(f"{field}.{position}", error) for error in invalid.errors())
    return tuple(good), errors


def _field_error(prefix: str, error: Any) -> FieldError:
    field = ".".join([prefix, *(str(part) for part in error["loc"])])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return FieldError(field, None, "is required", "")
    if error["type"] == "extra_forbidden":
        return FieldError(field, error["input"], "is not a known fact", "the keys of the bundled catalogue")
    return FieldError(field, error["input"], message[:1].lower() + message[1:], str(error.get("ctx", {})))


def _override(added: tuple[Record, ...], bundled: tuple[Record, ...]) -> tuple[Record, ...]:
    kept = tuple(old for old in bundled if all(old.id != new.id for new in added))
    return added + kept
