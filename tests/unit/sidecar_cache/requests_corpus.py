"""One request a route with every field that TGI 3.3.7 or OpenAI's clients know, and every single change of it."""

import copy
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Forecast.", "parameters": SCHEMA}}

PARAMETERS = {
    "best_of": 1,
    "temperature": 0.5,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "top_k": 10,
    "top_p": 0.9,
    "typical_p": 0.95,
    "do_sample": True,
    "max_new_tokens": 20,
    "return_full_text": False,
    "stop": ["Ende", "\n\n"],
    "truncate": 100,
    "watermark": True,
    "details": True,
    "decoder_input_details": True,
    "seed": 7,
    "top_n_tokens": 2,
    "grammar": {"type": "json", "value": SCHEMA},
    "adapter_id": "lora-a",
}
NATIVE = {"inputs": "Was heißt „Übermut“ auf Englisch? 12 Wörter.", "parameters": PARAMETERS}
CHAT = {
    "model": "tgi",
    "messages": [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "Weather in Zürich?"}]},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Z"}}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"sun": true}'},
        {"role": "user", "content": "And in 3 days?"},
    ],
    "frequency_penalty": 0.5,
    "logit_bias": [0.5],
    "logprobs": True,
    "top_logprobs": 2,
    "max_tokens": 64,
    "n": 1,
    "presence_penalty": -1.0,
    "stop": ["###"],
    "stream": False,
    "seed": 42,
    "temperature": 0.0,
    "top_p": 0.95,
    "tools": [TOOL],
    "tool_prompt": "Given the functions:",
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "response_format": {"type": "json_schema", "value": {"name": "w", "schema": SCHEMA}},
    "guideline": "polite",
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": True},
    # OpenAI's, not known to the engine
    "user": "u-1",
    "metadata": {"a": "1", "b": "2"},
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "repetition_penalty": 1,
    "service_tier": "auto",
    "store": False,
    "prediction": {"type": "content", "content": "x"},
}
COMPLETIONS = {
    "model": "tgi",
    "prompt": "Once upon a time",
    "max_tokens": 16,
    "temperature": 0,
    "top_p": 0.5,
    "stream": False,
    "seed": 3,
    "suffix": "",
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.25,
    "stop": ["."],
    "stream_options": {"include_usage": True},
    "best_of": 1,
    "echo": False,
    "logit_bias": {"50256": -100},
    "logprobs": 1,
    "n": 1,
    "presence_penalty": 0.5,
    "user": "u-2",
}
FULL: dict[str, dict[str, Any]] = {
    "generate": NATIVE,
    "generate_stream": NATIVE,
    "compat": {**NATIVE, "stream": False},
    "chat": CHAT,
    "completions": COMPLETIONS,
}
SMALL: dict[str, dict[str, Any]] = {
    "generate": {"inputs": "Hi", "parameters": {}},
    "generate_stream": {"inputs": "Hi", "parameters": {"max_new_tokens": 5}},
    "compat": {"inputs": "Hi", "parameters": {}},
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0},
    "completions": {"prompt": "Hi", "temperature": 0.0},
}

_OTHERS: tuple[Any, ...] = (None, True, False, 0, 1, 1.0, -1, 2**63, 0.7, "", "x", [], ["x"], {}, {"a": 1})


def encode(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _variants(value: Any) -> Iterator[Any]:
    """Values close to `value`, and values of every other kind."""
    yield from _OTHERS
    if isinstance(value, str):
        yield from (value + " ", " " + value, value.upper(), value.lower(), value + "\n", value[:-1])
        yield from (unicodedata.normalize("NFD", value), value.replace("3", "4"))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, float(value), int(value), -value, str(value))
    elif isinstance(value, list):
        yield from (value[::-1], [*value, *value], value[1:], [value])
    elif isinstance(value, dict):
        yield dict(reversed(value.items()))
        yield {**value, "unheard_of": 1}
        yield {"unheard_of": None, **value}


def mutations(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every change of one place of `body`: (what was done, the changed body)."""
    for path in _paths(body):
        if not path:
            for changed in ({**body, "unheard_of": 1}, {"unheard_of": [], **body}, dict(reversed(body.items()))):
                yield "the whole", changed
            continue
        for variant in _variants(_at(body, path)):
            changed = copy.deepcopy(body)
            _at(changed, path[:-1])[path[-1]] = variant
            yield f"{path} := {variant!r}", changed
        changed = copy.deepcopy(body)
        del _at(changed, path[:-1])[path[-1]]
        yield f"without {path}", changed


def additions(small: dict[str, Any], full: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`small` with each field that `full` has and it lacks, at the top and in `parameters`, in every variant."""
    for name, value in full.items():
        if name not in small:
            for variant in (value, *_variants(value)):
                yield f"+{name} = {variant!r}", {**small, name: variant}
    if "parameters" in small:
        for name, value in full["parameters"].items():
            for variant in (value, *_variants(value)):
                yield (
                    f"+parameters.{name} = {variant!r}",
                    {**small, "parameters": {**small["parameters"], name: variant}},
                )
