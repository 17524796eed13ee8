"""Readers of trace files: each known layout is told by its header, never by its file name."""

import csv
import gzip
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.replay.trace import Ints, Source, Trace, from_columns, with_jitter

# Mooncake's conversation trace stamps arrivals on a 3 s grid.
GRID_SHARE = 0.9
GRID_SECONDS = 3.0
GRID_TOLERANCE_SECONDS = 0.05


class TraceFormatError(ValueError):
    """A file that is no trace in a known layout; the message names the file and what was expected."""


def read_text(path: Path) -> str:
    """The text of a plain or gzip-compressed file."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")


def read_requests(text: str, name: str, source: Source, seed: int = 0) -> Trace:
    """Read a request-level trace.

    Layouts: `t_s,in_tokens,out_tokens[,prefix_block_ids_512]`; Azure's `TIMESTAMP,ContextTokens,GeneratedTokens`;
    Mooncake's JSON lines (`timestamp` ms, `input_length`, `output_length`, `hash_ids`); JSON lines with a list of
    `requests` a timestamp. `seed` drives the jitter that undoes rounded arrival times.
    """
    first = text[: text.find("\n")].strip()
    if first.startswith("{"):
        return _ungrid(_read_json_lines(text, name, source), seed)
    columns = first.split(",")
    if columns[:3] == ["t_s", "in_tokens", "out_tokens"]:
        return _ungrid(_read_seconds(text, name, source), seed)
    if columns == ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]:
        return _read_azure(text, name, source)
    raise TraceFormatError(
        f"{source.detail}: unknown header {first[:80]!r};"
        " expected t_s,in_tokens,out_tokens or the Azure or Mooncake layout"
    )


def _read_seconds(text: str, name: str, source: Source) -> Trace:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise TraceFormatError(f"{source.detail}: no rows")
    times = np.array([float(row["t_s"]) for row in rows])
    inputs = np.array([int(float(row["in_tokens"])) for row in rows])
    outputs = np.array([int(float(row["out_tokens"])) for row in rows])
    blocks = [row.get("prefix_block_ids_512") for row in rows]
    if blocks[0] is None:
        return from_columns(name, times, inputs, outputs, source)
    ids = [tuple(int(part) for part in (text or "").split()) for text in blocks]
    return _with_blocks(name, times, inputs, outputs, ids, source)


def _read_azure(text: str, name: str, source: Source) -> Trace:
    rows = list(csv.reader(io.StringIO(text)))[1:]
    # Seven digits of a second; datetime takes six.
    stamps = [datetime.fromisoformat(row[0][:26]) for row in rows]
    times = np.array([(stamp - stamps[0]).total_seconds() for stamp in stamps])
    inputs, outputs = (np.array([int(row[i]) for row in rows]) for i in (1, 2))
    return from_columns(name, times - times.min(), inputs, outputs, source)


def _read_json_lines(text: str, name: str, source: Source) -> Trace:
    times: list[float] = []
    inputs: list[int] = []
    outputs: list[int] = []
    blocks: list[tuple[int, ...]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        entry: dict[str, Any] = json.loads(line)
        try:
            for request in entry.get("requests", [entry]):
                times.append(float(entry["timestamp"]) / 1000.0)
                inputs.append(int(request.get("input_length", request.get("prompt_length", 0))))
                outputs.append(int(request["output_length"]))
                blocks.append(tuple(request.get("hash_ids", ())))
        except (KeyError, TypeError) as error:
            raise TraceFormatError(f"{source.detail}: line {number} lacks {error}") from error
    base = min(times, default=0.0)
    arrays = (np.array(times) - base, np.array(inputs), np.array(outputs))
    if any(blocks):
        return _with_blocks(name, *arrays, blocks, source)
    return from_columns(name, *arrays, source)


def _with_blocks(
    name: str, times: Any, inputs: Any, outputs: Any, blocks: list[tuple[int, ...]], source: Source
) -> Trace:
    plain = from_columns(name, times, inputs, outputs, source)
    order = np.argsort(times, kind="stable").tolist()
    keys: dict[tuple[int, tuple[int, ...]], int] = {}
    identity = [keys.setdefault((int(inputs[i]), blocks[i]), len(keys)) for i in order]
    return Trace(
        name=name,
        arrival_s=plain.arrival_s,
        input_tokens=plain.input_tokens,
        output_tokens=plain.output_tokens,
        prompt_key=np.array(identity, dtype=np.int64),
        span_s=plain.span_s,
        prefix_blocks=tuple(blocks[i] for i in order),
        source=source,
    )


def _ungrid(trace: Trace, seed: int) -> Trace:
    """Undo the rounding of arrivals to a 3 s grid, where there is one."""
    if len(trace) < 100:
        return trace
    offset = np.abs(trace.arrival_s - np.round(trace.arrival_s / GRID_SECONDS) * GRID_SECONDS)
    if float((offset <= GRID_TOLERANCE_SECONDS).mean()) < GRID_SHARE:
        return trace
    return with_jitter(trace, GRID_SECONDS, seed)


def read_lengths(text: str, source: Source) -> tuple[Ints, Ints]:
    """Read a length distribution (Vidur's columns): arrays of prompt and answer tokens, in file order."""
    rows = csv.DictReader(io.StringIO(text))
    if rows.fieldnames is None or not {"num_prefill_tokens", "num_decode_tokens"} <= set(rows.fieldnames):
        raise TraceFormatError(f"{source.detail}: expected the columns num_prefill_tokens and num_decode_tokens")
    pairs = [(int(float(row["num_prefill_tokens"])), int(float(row["num_decode_tokens"]))) for row in rows]
    return np.array([p for p, _ in pairs], dtype=np.int64), np.array([d for _, d in pairs], dtype=np.int64)
