"""Chat templates as Hugging Face models bring them: sandboxed Jinja with a few agreed functions."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateFailedError(ValueError):
    """The template refused the messages or is broken; the engine will say so too."""


class ChatTemplate:
    """Renders messages to the prompt that the engine would make of them."""

    def __init__(self, source: str, tokens: dict[str, str], *, now: Callable[[], datetime]) -> None:
        """`tokens`: bos_token, eos_token and the like. Raises TemplateFailedError when the source is no template."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        self._tokens = tokens
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise TemplateFailedError(str(error)) from error

    def render(self, messages: list[dict[str, Any]], tools: Any = None) -> str:
        """The prompt text, with the opening of an answer unless the last message is an assistant's.

        Raises TemplateFailedError.
        """
        opening = not messages or messages[-1].get("role") != "assistant"
        try:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=opening, **self._tokens)
        except Exception as error:
            # A template is a program over what a client sent: TypeError, KeyError and RecursionError happen too.
            raise TemplateFailedError(str(error)[:200]) from error


def load_template(folder: Path, *, now: Callable[[], datetime]) -> ChatTemplate | None:
    """The template of a model's folder (chat_template.jinja, chat_template.json or tokenizer_config.json), if any.

    Raises TemplateFailedError, OSError, ValueError (a file that is no JSON).
    """
    config: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    source = _source(folder, config)
    if source is None:
        return None
    return ChatTemplate(source, {name: text for name, text in tokens.items() if text is not None}, now=now)


def _source(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    found = config.get("chat_template")
    if (folder / "chat_template.json").is_file():
        found = json.loads((folder / "chat_template.json").read_text("utf-8")).get("chat_template", found)
    if isinstance(found, list):  # several by name
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _token(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
