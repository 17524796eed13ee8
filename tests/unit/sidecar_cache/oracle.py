"""A second, plain implementation of what makes two requests alike and of what is deterministic, for tests only.

It goes the other way round than the code under test: it fills every default in, as serde does on reading a request, and
compares what the engine would see. It is slow, knows every field by name and shares no code with `trimtab.sidecar`.
"""

import json
from typing import Any, NamedTuple


class Pairs(NamedTuple):
    """A JSON object as it was written."""

    items: tuple[tuple[str, Any], ...]

    def has(self, name: str) -> bool:
        return any(key == name for key, _ in self.items)

    def get(self, name: str, default: Any = None) -> Any:
        return next((value for key, value in self.items if key == name), default)


def parse(raw: bytes) -> Any:
    """JSON with objects as Pairs; raises ValueError for what the engine's parser refuses."""

    def pairs(items: list[tuple[str, Any]]) -> Pairs:
        names = [name for name, _ in items]
        if len(set(names)) != len(names):
            raise ValueError("duplicate key")
        return Pairs(tuple(items))

    def constant(name: str) -> Any:
        raise ValueError(name)

    return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)


def free(value: Any) -> Any:
    """Free JSON: everything counts, the order of keys included."""
    if isinstance(value, Pairs):
        return ("object", tuple((name, free(item)) for name, item in value.items))
    if isinstance(value, list):
        return ("array", tuple(free(item) for item in value))
    return (type(value).__name__, repr(value))  # -0.0 is not 0.0, True is not 1


def real(value: Any) -> Any:
    """f32 fields read an integer as a float."""
    if isinstance(value, bool) or not isinstance(value, int):
        return free(value)
    return ("float", repr(float(value)))


def struct(value: Any, **readers: Any) -> Any:
    """A typed structure: the order of its keys does not count; fields without a reader are free JSON."""
    if not isinstance(value, Pairs):
        return free(value)
    return ("struct", frozenset((name, readers.get(name, free)(item)) for name, item in value.items))


def many(reader: Any) -> Any:
    return lambda value: ("array", tuple(reader(item) for item in value)) if isinstance(value, list) else free(value)


def function(value: Any) -> Any:
    return struct(value)


def tool(value: Any) -> Any:
    return struct(value, function=function)


def chunk(value: Any) -> Any:
    return struct(value, image_url=struct)


def message(value: Any) -> Any:
    return struct(value, content=many(chunk), tool_calls=many(tool))


def choice(value: Any) -> Any:
    return struct(value, function=struct)


REALS = {"temperature", "top_p", "frequency_penalty"}
NATIVE_REALS = {*REALS, "typical_p", "repetition_penalty"}
CHAT_REALS = {*REALS, "presence_penalty"}
COMPLETION_REALS = {*REALS, "repetition_penalty"}
NATIVE_OPTIONS = {"best_of", "top_k", "truncate", "seed", "top_n_tokens", "adapter_id", "grammar", "temperature"}
NATIVE_OPTIONS |= {"repetition_penalty", "frequency_penalty", "top_p", "typical_p"}
NATIVE_FLAGS = {"do_sample", "watermark", "details", "decoder_input_details"}
CHAT_OPTIONS = {"frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "max_tokens", "stop", "seed"}
CHAT_OPTIONS |= {"temperature", "top_p", "tools", "response_format", "stream_options"}
COMPLETION_OPTIONS = {"max_tokens", "temperature", "top_p", "seed", "repetition_penalty", "frequency_penalty", "stop"}
COMPLETION_OPTIONS |= {"stream_options"}


def fields(body: Pairs, options: set[str], reals: set[str], **readers: Any) -> dict[str, Any]:
    """All fields as read, with `None` filled in for every absent option."""
    seen: dict[str, Any] = {name: free(None) for name in options}
    for name, value in body.items:
        reader = readers.get(name, real if name in reals else free)
        seen[name] = free(None) if value is None else reader(value)
    return seen


def frozen(seen: dict[str, Any]) -> Any:
    return frozenset(seen.items())


def parameters(value: Any) -> Any:
    if not isinstance(value, Pairs):
        return free(value)
    seen = fields(value, NATIVE_OPTIONS, NATIVE_REALS, grammar=struct)
    for name in NATIVE_FLAGS:
        seen.setdefault(name, free(False))
    seen.setdefault("stop", free([]))
    return frozen(seen)


def view(route: str, raw: bytes) -> Any:
    """What the engine sees of a request to `route`; requests with unequal views may never share an answer."""
    body = parse(raw)
    if route in ("generate", "generate_stream", "compat"):
        seen = fields(body, set(), set(), parameters=parameters)
        if route == "compat":
            seen.setdefault("stream", free(False))
        return route, frozen(seen)
    if route == "chat":
        readers = {"messages": many(message), "tools": many(tool), "tool_choice": choice}
        seen = fields(body, CHAT_OPTIONS, CHAT_REALS, response_format=struct, stream_options=struct, **readers)
    else:
        seen = fields(body, COMPLETION_OPTIONS, COMPLETION_REALS, stream_options=struct)
    seen.setdefault("stream", free(False))
    return route, frozen(seen)


def deterministic(route: str, raw: bytes) -> bool:
    """Whether the engine's sampler would be greedy or seeded by the client."""
    body = parse(raw)
    if route in ("chat", "completions"):
        holder = body
        temperature = body.get("temperature")
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        do_sample = not (number and temperature == 0)
        warpers = ("top_p", "top_k", "typical_p")
    else:
        holder = body.get("parameters")
        if not isinstance(holder, Pairs):
            return False
        do_sample = holder.get("do_sample", False) is not False
        warpers = ("temperature", "top_p", "top_k", "typical_p")
    seed = holder.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**64:
        return True
    return not do_sample and all(holder.get(name) is None for name in warpers)
