"""Base of all catalogue records: immutable, and unknown keys are errors."""

from pydantic import BaseModel, ConfigDict


class Facts(BaseModel):
    """A validated record of the catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())
