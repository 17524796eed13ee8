"""What the headers of safetensors files tell, without the weights.

A file begins with eight bytes, the little-endian length of a JSON object {name: {dtype, shape, data_offsets}}
(format description: github.com/huggingface/safetensors). Reading files is left to callers.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

MAX_HEADER_BYTES = 25_000_000
"""Longest header that the format's own reader accepts (100 MB there; 25 MB in the Hub's client)."""
LENGTH_BYTES = 8

DTYPE_BYTES = MappingProxyType(
    {
        "F64": 8.0, "I64": 8.0, "U64": 8.0, "F32": 4.0, "I32": 4.0, "U32": 4.0, "F16": 2.0, "BF16": 2.0, "I16": 2.0,
        "U16": 2.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0, "F8_E8M0": 1.0, "I8": 1.0, "U8": 1.0, "BOOL": 1.0, "F4": 0.5,
    }
)  # fmt: skip


class HeaderError(ValueError):
    """Bytes that are not the beginning of a safetensors file."""


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """All tensors of a checkpoint, summed up."""

    total_bytes: int
    bytes_by_dtype: Mapping[str, int] = field(default_factory=dict)
    tensors: int = 0


def header_length(start: bytes) -> int:
    """Length of the JSON header from the first eight bytes; raises HeaderError when it cannot be one."""
    if len(start) < LENGTH_BYTES:
        raise HeaderError(f"a safetensors file has at least {LENGTH_BYTES} bytes, got {len(start)}")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise HeaderError(f"not a safetensors file: header length {length} is not within 2 to {MAX_HEADER_BYTES}")
    return length


def parse_header(header: bytes) -> dict[str, dict[str, Any]]:
    """Tensors by name from the JSON header; raises HeaderError for anything else."""
    try:
        tensors = json.loads(header)
    except ValueError as broken:
        raise HeaderError(f"not a safetensors header: {broken}") from None
    if not isinstance(tensors, dict):
        raise HeaderError("not a safetensors header: no object")
    tensors.pop("__metadata__", None)
    for name, tensor in tensors.items():
        if not isinstance(tensor, dict) or not {"dtype", "shape", "data_offsets"} <= tensor.keys():
            raise HeaderError(f"tensor {name} has no dtype, shape and data_offsets")
    return tensors


def summarize(headers: Iterable[Mapping[str, Mapping[str, Any]]]) -> TensorSummary:
    """Bytes of all tensors in the given headers."""
    by_dtype: dict[str, int] = {}
    count = 0
    for header in headers:
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            by_dtype[tensor["dtype"]] = by_dtype.get(tensor["dtype"], 0) + int(end) - int(begin)
            count += 1
    return TensorSummary(sum(by_dtype.values()), by_dtype, count)
