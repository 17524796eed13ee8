"""The canonical form of a request body: equal for two bodies exactly when the engine provably treats them alike.

What TGI 3.3.7 reads into typed structures (serde) is insensitive to the order of keys; there keys are sorted. What it
keeps as free JSON is not: JSON schemas of grammars and tools are compiled property by property, and chat templates
print tools as they came. There the order is kept, as it is in anything unknown.

Merged beyond that: `null` and absent where the field is an `Option`; `1` and `1.0` where it is a float; a spelled-out
`false` or `[]` of `parameters` where that is the field's serde default. Text is never touched, no default is filled in,
no field is dropped (but `stream`, which is part of the key otherwise).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from trimtab.sidecar.interfaces import Route

Rule = Callable[[Any], Any]


class _Absent:
    """What a rule returns for a value that the engine treats as if the field were not there."""


ABSENT: Final = _Absent()


def _real(value: Any) -> Any:
    """A float field: serde reads `1` as `1.0`."""
    return float(value) if type(value) is int and -(2**53) <= value <= 2**53 else value


def _optional_real(value: Any) -> Any:
    return ABSENT if value is None else _real(value)


def _optional(value: Any) -> Any:
    return ABSENT if value is None else value


def _false_is_default(value: Any) -> Any:
    return ABSENT if value is False else value


def _empty_is_default(value: Any) -> Any:
    return ABSENT if type(value) is list and not value else value


def _flag(value: Any) -> Any:
    """`stream`: its effect is in the key as the representation; what is no boolean stays (the engine refuses it)."""
    return ABSENT if type(value) is bool else value


class _Struct:
    """A typed structure: sorted keys, a rule for some of the fields; values that are no object stay as they are."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Mapping[str, Rule] | None = None) -> None:
        self._rules = dict(rules or {})

    def __call__(self, value: Any) -> Any:
        if type(value) is not dict:
            return value
        rules = self._rules
        out: dict[str, Any] = {}
        for name in sorted(value):
            item = value[name]
            rule = rules.get(name)
            if rule is not None:
                item = rule(item)
                if item is ABSENT:
                    continue
            out[name] = item
        return out


def _each(rule: Rule) -> Rule:
    """A list of typed structures; anything else stays as it is."""
    return lambda value: [rule(item) for item in value] if type(value) is list else value


def _or_absent(rule: Rule) -> Rule:
    return lambda value: ABSENT if value is None else rule(value)


_FUNCTION = _Struct()  # name, description, and free JSON: parameters or arguments
_TOOLS = _each(_Struct({"function": _FUNCTION}))
_TAGGED = _Struct()  # {"type": …, "value": free JSON}
_CHUNK = _Struct({"image_url": _Struct()})
_MESSAGES = _each(_Struct({"content": _each(_CHUNK), "tool_calls": _TOOLS}))

_SHARED: Mapping[str, Rule] = {
    "stream": _flag,
    "temperature": _optional_real,
    "top_p": _optional_real,
    "frequency_penalty": _optional_real,
    "seed": _optional,
    "stop": _optional,
    "max_tokens": _optional,
    "stream_options": _or_absent(_Struct()),
}
_CHAT = _Struct(
    {
        **_SHARED,
        "presence_penalty": _optional_real,
        "logprobs": _optional,
        "top_logprobs": _optional,
        "messages": _MESSAGES,
        "tools": _or_absent(_TOOLS),
        "tool_choice": _Struct({"function": _Struct()}),
        "response_format": _or_absent(_TAGGED),
    }
)
_COMPLETIONS = _Struct({**_SHARED, "repetition_penalty": _optional_real})
# `max_new_tokens` and `return_full_text` have no rule: their defaults depend on version, route and model.
_PARAMETERS = _Struct(
    {
        "best_of": _optional,
        "temperature": _optional_real,
        "repetition_penalty": _optional_real,
        "frequency_penalty": _optional_real,
        "top_k": _optional,
        "top_p": _optional_real,
        "typical_p": _optional_real,
        "do_sample": _false_is_default,
        "stop": _empty_is_default,
        "truncate": _optional,
        "watermark": _false_is_default,
        "details": _false_is_default,
        "decoder_input_details": _false_is_default,
        "seed": _optional,
        "top_n_tokens": _optional,
        "grammar": _or_absent(_TAGGED),
        "adapter_id": _optional,
    }
)
_NATIVE = _Struct({"parameters": _PARAMETERS})
_COMPAT = _Struct({"parameters": _PARAMETERS, "stream": _flag})

_BY_ROUTE: Mapping[Route, _Struct] = {
    Route.CHAT: _CHAT,
    Route.COMPLETIONS: _COMPLETIONS,
    Route.GENERATE: _NATIVE,
    Route.GENERATE_STREAM: _NATIVE,
    Route.COMPAT: _COMPAT,
}


def canonical_body(route: Route, body: dict[str, Any]) -> dict[str, Any] | None:
    """The canonical form of `body`; None when it is ambiguous (the engine refuses it). The input is not changed.

    Routes without typed knowledge keep every byte of order.
    """
    if "max_tokens" in body and "max_completion_tokens" in body:
        return None  # an alias: serde sees the field twice
    struct = _BY_ROUTE.get(route)
    return body if struct is None else struct(body)
