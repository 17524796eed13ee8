"""The base of all API models: camelCase names, and rules that hold both in Python and as CEL in the CRD."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h)$")
_QUANTITY_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?$")


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `250ms`, `2s`, `1.5m`, `1h`.

    Raises ValueError with what is allowed when the text is anything else.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ValueError("must be a number with a unit ms, s, m or h, for instance 250ms")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_quantity(text: str) -> int:
    """Bytes in a Kubernetes quantity such as `256Mi` or `2G`; raises ValueError for anything else."""
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError("must be a Kubernetes quantity of bytes, for instance 256Mi or 2Gi")
    return int(float(match[1]) * _QUANTITY_UNITS[match[2] or ""])


def _known_quantity(text: str) -> str:
    parse_quantity(text)
    return text


# The pattern (longer than zero, with a unit) is what the API server checks.
Duration = Annotated[
    str,
    Field(pattern=r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|0+\.[0-9]*[1-9][0-9]*)(ms|s|m|h)$", max_length=32),
]
Quantity = Annotated[
    str,
    Field(pattern=r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=32),
    AfterValidator(_known_quantity),
]


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over several fields, stated once for both places that enforce it.

    `cel` and `message` (a CEL expression that yields a string naming field and value) go into the CRD;
    `check` is the same condition in Python, used offline. A test on a real API server holds the two together.
    """

    field: str
    cel: str
    message: str
    check: Callable[[Any], str | None]
    """Returns None when the rule holds, else the sentence that says what is wrong."""


class ApiModel(BaseModel):
    """A part of the resource. Unknown fields are errors: nothing is accepted and ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _hold_rules(self) -> Self:
        for rule in type(self).rules:
            problem = rule.check(self)
            if problem is not None:
                raise ValueError(f"{rule.field}\x00{problem}")
        return self
