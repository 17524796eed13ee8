import json
from datetime import datetime
from pathlib import Path

import pytest

from trimtab.sidecar.context.template import ChatTemplate, TemplateFailedError, load_template

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = [{"role": "user", "content": "Hi <there>"}]


def now() -> datetime:
    return datetime(2025, 3, 4)  # noqa: DTZ001 - templates print local dates


def render(source: str, **more: object) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, now=now).render(USER, **more)  # type: ignore[arg-type]


def test_messages_are_rendered_with_the_opening_of_an_answer() -> None:
    assert render(CHATML) == "<s><|im_start|>user\nHi <there><|im_end|>\n<|im_start|>assistant\n"
    answered = [*USER, {"role": "assistant", "content": "Yes"}]
    assert ChatTemplate(CHATML, {}, now=now).render(answered).endswith("Yes<|im_end|>\n")


def test_the_agreed_functions_are_there() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "04 Mar 2025"
    assert render("{{ tools | tojson }}", tools=[{"a": "ü<"}]) == '[{"a": "ü<"}]'
    assert render("{% for m in messages %}{% break %}{% endfor %}ok") == "ok"
    with pytest.raises(TemplateFailedError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ messages.__class__.__mro__ }}", id="classes"),
        pytest.param("{{ ''.__class__.__base__.__subclasses__() }}", id="subclasses"),
        pytest.param("{{ messages.append(1) }}", id="mutation"),
        pytest.param("{{ messages[7].content.x }}", id="missing message"),
        pytest.param("{{ 1 + 'a' }}", id="type error"),
    ],
)
def test_templates_reach_nothing_but_their_arguments(source: str) -> None:
    with pytest.raises(TemplateFailedError):
        render(source)


def test_a_broken_template_is_refused_when_it_is_read() -> None:
    with pytest.raises(TemplateFailedError):
        ChatTemplate("{% if %}", {}, now=now)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"tokenizer_config.json": {"bos_token": "<s>", "chat_template": CHATML}}, id="one in the config"),
        pytest.param(
            {
                "tokenizer_config.json": {
                    "bos_token": {"content": "<s>", "lstrip": False},
                    "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}],
                }
            },
            id="several by name",
        ),
        pytest.param(
            {"tokenizer_config.json": {"bos_token": "<s>", "chat_template": "x"}, "chat_template.jinja": CHATML},
            id="a file of its own comes first",
        ),
        pytest.param(
            {"tokenizer_config.json": {"bos_token": "<s>"}, "chat_template.json": {"chat_template": CHATML}},
            id="a JSON file of its own",
        ),
    ],
)
def test_a_models_folder_brings_its_template(tmp_path: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    template = load_template(tmp_path, now=now)
    assert template is not None
    assert template.render(USER).startswith("<s><|im_start|>user")


def test_a_folder_without_template_has_none(tmp_path: Path) -> None:
    assert load_template(tmp_path, now=now) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "x"}]}')
    assert load_template(tmp_path, now=now) is None
