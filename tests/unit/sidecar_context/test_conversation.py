from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.sidecar.context.conversation import has_images, parse_conversation, text_of, with_note


def m(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    m("system", "S"),
    m("user", "u1"),
    m("assistant", None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]),
    m("tool", "result"),
    m("assistant", "a1"),
    m("user", "u2"),
]


def test_a_turn_reaches_from_one_user_message_to_the_next() -> None:
    conversation = parse_conversation(CHAT)
    assert conversation is not None
    assert conversation.pinned == (CHAT[0],)
    assert conversation.turns == (tuple(CHAT[1:5]), (CHAT[5],))


@given(roles=st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), min_size=1, max_size=20))
def test_no_message_is_lost_and_tool_results_follow_their_calls(roles: list[str]) -> None:
    messages = [m(role, str(number)) for number, role in enumerate(roles)]
    conversation = parse_conversation(messages)
    assert conversation is not None
    assert conversation.messages() == messages
    assert all(message["role"] != "user" for turn in conversation.turns for message in turn[1:])


@pytest.mark.parametrize("messages", [None, [], "x", [1], [{"role": "user"}, None]])
def test_what_is_no_list_of_messages_is_left_to_the_engine(messages: Any) -> None:
    assert parse_conversation(messages) is None


def test_a_note_joins_the_system_prompt() -> None:
    conversation = parse_conversation(CHAT)
    assert conversation is not None
    assert with_note(conversation, 1, "N") == [m("system", "S\n\nN"), CHAT[5]]


def test_without_a_system_prompt_the_note_joins_the_first_kept_user_message() -> None:
    conversation = parse_conversation(CHAT[1:])
    assert conversation is not None
    assert with_note(conversation, 1, "N") == [m("user", "N\n\nu2")]


def test_a_note_becomes_a_message_where_it_can_join_none() -> None:
    conversation = parse_conversation([m("user", [{"type": "text", "text": "t"}])])
    assert conversation is not None
    assert [message["content"] for message in with_note(conversation, 0, "N")] == ["N", [{"type": "text", "text": "t"}]]


def test_all_text_counts_and_images_are_noticed() -> None:
    chunks = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    assert text_of(m("user", chunks)) == "a"
    assert has_images([m("user", chunks)]) and not has_images([m("user", chunks[:1]), m("user")])
    assert "arguments" in text_of(CHAT[2])
