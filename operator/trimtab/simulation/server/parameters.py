"""The native request: types as serde reads them, then the rules of router/src/validation.rs, in its order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.simulation.requests import CHUNK_TOKENS
from trimtab.simulation.server.errors import BodyError, invalid
from trimtab.simulation.server.text import pieces
from trimtab.simulation.settings import length_problem

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What the flags allow."""

    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_client_batch_size: int = 4
    grammar: bool = True


@dataclass(frozen=True, slots=True)
class Generation:
    """A valid request."""

    inputs: str
    parts: tuple[str, ...]
    """Tokens of the prompt, truncated if asked."""
    max_new_tokens: int
    explicit_max: bool
    stops: tuple[str, ...]
    details: bool
    prompt_details: bool
    return_full_text: bool | None
    best_of: int
    top_n_tokens: int
    sampled: bool
    seed: int | None
    grammar: Mapping[str, Any] | None
    decisive: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that change the answer."""

    @property
    def need_new(self) -> int:
        """Tokens of the first chunk."""
        return min(self.max_new_tokens, CHUNK_TOKENS)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "best_of": ("usize", lambda v: _integer(v) and v >= 0),
    "temperature": ("f32", lambda v: _integer(v) or isinstance(v, float)),
    "repetition_penalty": ("f32", lambda v: _integer(v) or isinstance(v, float)),
    "frequency_penalty": ("f32", lambda v: _integer(v) or isinstance(v, float)),
    "top_k": ("i32", _integer),
    "top_p": ("f32", lambda v: _integer(v) or isinstance(v, float)),
    "typical_p": ("f32", lambda v: _integer(v) or isinstance(v, float)),
    "do_sample": ("a boolean", lambda v: isinstance(v, bool)),
    "max_new_tokens": ("u32", lambda v: _integer(v) and 0 <= v < 2**32),
    "return_full_text": ("a boolean", lambda v: isinstance(v, bool)),
    "stop": ("a sequence", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v)),
    "truncate": ("usize", lambda v: _integer(v) and v >= 0),
    "watermark": ("a boolean", lambda v: isinstance(v, bool)),
    "details": ("a boolean", lambda v: isinstance(v, bool)),
    "decoder_input_details": ("a boolean", lambda v: isinstance(v, bool)),
    "seed": ("u64", lambda v: _integer(v) and 0 <= v < 2**64),
    "top_n_tokens": ("u32", lambda v: _integer(v) and 0 <= v < 2**32),
    "grammar": ("adjacently tagged enum GrammarType", lambda v: isinstance(v, dict)),
    "adapter_id": ("a string", lambda v: isinstance(v, str)),
}
_NOT_NULL = frozenset({"do_sample", "stop", "watermark", "details", "decoder_input_details"})


def read_native(body: Any) -> tuple[str, dict[str, Any] | None]:
    """(inputs, parameters or None when absent); raises BodyError as axum's JSON extractor does."""
    if not isinstance(body, dict):
        raise _wrong_type(body, "struct GenerateRequest")
    if "inputs" not in body:
        raise BodyError(422, "Failed to deserialize the JSON body into the target type: missing field `inputs`")
    if not isinstance(body["inputs"], str):
        raise _wrong_type(body["inputs"], "a string", "inputs: ")
    if "parameters" not in body:
        return body["inputs"], None
    parameters = body["parameters"]
    if not isinstance(parameters, dict):
        raise _wrong_type(parameters, "struct GenerateParameters", "parameters: ")
    for name, (wanted, accepts) in _TYPES.items():
        value = parameters.get(name)
        if name in parameters and not (accepts(value) or (value is None and name not in _NOT_NULL)):
            raise _wrong_type(value, wanted, f"parameters.{name}: ")
    return body["inputs"], parameters


def _wrong_type(value: Any, wanted: str, where: str = "") -> BodyError:
    match value:
        case None:
            shown = "null"
        case bool():
            shown = f"boolean `{str(value).lower()}`"
        case int():
            shown = f"integer `{value}`"
        case float():
            shown = f"floating point `{value}`"
        case str():
            shown = f'string "{value}"'
        case list():
            shown = "sequence"
        case _:
            shown = "map"
    return BodyError(
        422,
        f"Failed to deserialize the JSON body into the target type: {where}invalid type: {shown}, expected {wanted}",
    )


def validate(
    inputs: str, parameters: Mapping[str, Any] | None, limits: Limits, *, stream: bool, sample_default: bool = True
) -> Generation:
    """Check a request; raises ApiError 422. Without `parameters` answers are sampled."""
    given: Mapping[str, Any] = {"do_sample": sample_default} if parameters is None else parameters
    _check_best_of(given, limits, stream=stream)
    _check_sampling(given)
    _check_counts(given, limits)
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    truncate = given.get("truncate")
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        raise invalid(
            f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {truncate}"
        )
    parts = pieces(inputs)
    parts = parts[-truncate:] if truncate is not None else parts
    wanted = given.get("max_new_tokens")
    most = max(0, limits.max_total_tokens - len(parts)) if wanted is None else int(wanted)
    problem = length_problem(len(parts), min(most, CHUNK_TOKENS), limits.max_input_tokens, limits.max_total_tokens)
    if problem is not None:
        raise invalid(problem)
    grammar = _grammar(given.get("grammar"), limits)
    return Generation(
        inputs=inputs,
        parts=tuple(parts),
        max_new_tokens=most,
        explicit_max=wanted is not None,
        stops=tuple(given.get("stop") or ()),
        details=bool(given.get("details")) or bool(given.get("decoder_input_details")),
        prompt_details=bool(given.get("decoder_input_details")),
        return_full_text=given.get("return_full_text"),
        best_of=given.get("best_of") or 1,
        top_n_tokens=given.get("top_n_tokens") or 0,
        sampled=_samples(given),
        seed=given.get("seed"),
        grammar=grammar,
        decisive={name: value for name, value in given.items() if value is not None and name not in _REPORTING},
    )


_REPORTING = frozenset(
    {"details", "decoder_input_details", "return_full_text", "top_n_tokens", "best_of", "max_new_tokens"}
)
"""Parameters that change what is reported or where an answer stops, not the answer."""


def _check_counts(given: Mapping[str, Any], limits: Limits) -> None:
    top_n = given.get("top_n_tokens") or 0
    if top_n > limits.max_top_n_tokens:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {top_n}")
    stops = given.get("stop") or ()
    if len(stops) > limits.max_stop_sequences:
        raise invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stops)}")
    if given.get("max_new_tokens") == 0:
        raise invalid("`max_new_tokens` must be strictly positive")


def _samples(given: Mapping[str, Any]) -> bool:
    """Sampling is on when it is asked for or any option is set that needs it."""
    options = ("temperature", "top_k", "top_p", "typical_p")
    return bool(given.get("do_sample")) or any(given.get(name) is not None for name in options)


def _check_best_of(given: Mapping[str, Any], limits: Limits, *, stream: bool) -> None:
    best_of = given.get("best_of")
    if best_of is None:
        best_of = 1
    elif not 0 < best_of <= limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if best_of > 1:
        if stream:
            raise invalid("`best_of` != 1 is not supported when streaming tokens")
        if not _samples(given):
            raise invalid("you must use sampling when `best_of` is > 1")
        if given.get("seed") is not None:
            raise invalid("`seed` must not be set when `best_of` > 1")
    if stream and given.get("decoder_input_details"):
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")


def _check_sampling(given: Mapping[str, Any]) -> None:
    for name in ("temperature", "repetition_penalty", "top_k"):
        value = given.get(name)
        if value is not None and value <= 0:
            raise invalid(f"`{name}` must be strictly positive")
    penalty = given.get("frequency_penalty")
    if penalty is not None and not -2.0 <= penalty <= 2.0:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        value = given.get(name)
        if value is not None and not 0.0 < value < 1.0:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")


def _grammar(grammar: Mapping[str, Any] | None, limits: Limits) -> Mapping[str, Any] | None:
    if grammar is None:
        return None
    if not limits.grammar:
        raise invalid("grammar is not supported")
    kind, value = grammar.get("type"), grammar.get("value")
    if kind not in ("json", "json_object", "json_schema", "regex"):
        raise BodyError(
            422,
            "Failed to deserialize the JSON body into the target type: parameters.grammar: "
            f"unknown variant `{kind}`, expected one of `json`, `json_object`, `json_schema`, `regex`",
        )
    if kind == "regex":
        return {"regex": str(value)}
    schema = value.get("schema") if kind == "json_schema" and isinstance(value, Mapping) else value
    if not isinstance(schema, Mapping) or "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    return {"json": schema}
