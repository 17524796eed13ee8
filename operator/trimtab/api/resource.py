"""The whole resource, and how a manifest becomes one or a list of errors."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from trimtab.api import API_VERSION, KIND
from trimtab.api.errors import FieldError, InvalidSpecError
from trimtab.api.schema import ApiModel
from trimtab.api.spec import LLMDeploymentSpec
from trimtab.api.status import LLMDeploymentStatus


class LLMDeploymentBody(ApiModel):
    """Root of the schema, without the parts that Kubernetes itself defines."""

    spec: LLMDeploymentSpec
    """What is wanted."""
    status: LLMDeploymentStatus | None = None
    """What is true."""


def parse_manifest(manifest: Any) -> LLMDeploymentSpec:
    """The spec of an LLMDeployment manifest (a mapping as YAML or JSON gives it).

    Raises InvalidSpecError with one FieldError for each thing that is wrong.
    """
    if not isinstance(manifest, Mapping):
        raise InvalidSpecError((FieldError("", type(manifest).__name__, "must be a manifest", "a mapping"),))
    wrong = [
        FieldError(field, manifest.get(field), "is not an LLMDeployment of this version", expected)
        for field, expected in (("apiVersion", API_VERSION), ("kind", KIND))
        if manifest.get(field) != expected
    ]
    if wrong:
        raise InvalidSpecError(tuple(wrong))
    return parse_spec(manifest.get("spec"))


def parse_spec(spec: Any) -> LLMDeploymentSpec:
    """The validated spec; raises InvalidSpecError as `parse_manifest` does."""
    try:
        return LLMDeploymentSpec.model_validate(spec)
    except ValidationError as invalid:
        raise InvalidSpecError(tuple(_field_error(error) for error in invalid.errors())) from None


_KINDS: dict[str, Literal["unknown", "missing"]] = {"extra_forbidden": "unknown", "missing": "missing"}


def _field_error(error: Any) -> FieldError:
    field = ".".join(["spec", *(str(part) for part in error["loc"])])
    message = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    if "\x00" in message:
        below, message = message.split("\x00", 1)
        field = f"{field}.{below}"
        value = _value_below(value, below)
    context = error.get("ctx", {})
    allowed = str(context.get("expected") or context.get("pattern") or "")
    match _KINDS.get(error["type"]):
        case "unknown":
            return FieldError(field, value, "is not a field of LLMDeployment", "the fields of `kubectl explain llmd`")
        case "missing":
            return FieldError(field, None, "is required", allowed)
    return FieldError(field, value, message[:1].lower() + message[1:], allowed)


def _value_below(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
