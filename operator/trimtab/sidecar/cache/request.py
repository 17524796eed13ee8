"""From the bytes of a request to a `Call`.

The parser is as strict as the engine's own (serde_json) where laxness could make two different requests look alike:
duplicate keys, NaN, bytes that are no UTF-8, lone surrogates and trailing data are refused. Depth is bounded (200) by
the parser, numbers to 4,300 digits.
"""

from typing import Any

import jiter

from trimtab.sidecar.interfaces import BadBodyError, Call, Route

_STREAM_FLAG = frozenset({Route.COMPAT, Route.CHAT, Route.COMPLETIONS})
_MAX_UNITS = 4096
_MAX_MESSAGE = 120


def read_call(route: Route, raw: bytes) -> Call:
    """The generation request in `raw`. Raises BadBodyError when it can be no valid request.

    `units` is the number of sequences the engine would run: `best_of`, or the number of prompts; 1 where the values
    make no sense (the engine refuses such a request itself).
    """
    try:
        body = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise BadBodyError(f"the body is no valid JSON: {str(error)[:_MAX_MESSAGE]}") from None
    if type(body) is not dict:
        raise BadBodyError("the body is no JSON object")
    if route is Route.INVOCATIONS:
        return Call(route, raw, body, _flag(body), _units(_shape(body), body))
    if route is Route.VERTEX:
        return Call(route, raw, body, stream=False, units=_vertex_units(body))
    stream = _flag(body) if route in _STREAM_FLAG else route is Route.GENERATE_STREAM
    return Call(route, raw, body, stream, _units(route, body))


def _flag(body: dict[str, Any]) -> bool:
    return body.get("stream") is True


def _shape(body: dict[str, Any]) -> Route:
    """Which request `/invocations` was given; the engine tries the native shape first, then chat, then completions."""
    if "inputs" in body:
        return Route.COMPAT
    return Route.CHAT if "messages" in body else Route.COMPLETIONS


def _units(route: Route, body: dict[str, Any]) -> int:
    if route is Route.CHAT:
        return 1  # `n` is ignored by the engine
    if route is Route.COMPLETIONS:
        prompt = body.get("prompt")
        return min(max(len(prompt), 1), _MAX_UNITS) if type(prompt) is list else 1
    parameters = body.get("parameters")
    best_of = parameters.get("best_of") if type(parameters) is dict else None
    return best_of if type(best_of) is int and 1 <= best_of <= _MAX_UNITS else 1


def _vertex_units(body: dict[str, Any]) -> int:
    instances = body.get("instances")
    if type(instances) is not list:
        return 1
    units = sum(_units(Route.GENERATE, instance) if type(instance) is dict else 1 for instance in instances)
    return min(max(units, 1), _MAX_UNITS)
