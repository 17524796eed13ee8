"""How bad input is reported: always the field, the value and what is allowed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with a spec, in words that tell what to write instead.

    `field` is a JSON path below the resource (`spec.scaling.maxReplicas`), `value` what stood there,
    `allowed` what may stand there.
    """

    field: str
    value: Any
    message: str
    allowed: str = ""

    def sentence(self) -> str:
        """One line for conditions, events and terminals."""
        allowed = f" (allowed: {self.allowed})" if self.allowed else ""
        return f"{self.field}: {self.message}, got {_short(self.value)}{allowed}"

    def to_json(self) -> dict[str, Any]:
        """The object of `trimtab plan -o json`."""
        return {"field": self.field, "value": self.value, "message": self.message, "allowed": self.allowed}


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class InvalidSpecError(ValueError):
    """A manifest that cannot become a deployment; carries every error, not only the first."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        self.errors = errors
        super().__init__("; ".join(error.sentence() for error in errors))
