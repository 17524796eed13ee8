import pytest

from trimtab.simulation.vllm.protocol import ApiError, read_request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello there"}]}


def read(body, chat=True):
    return read_request(body, chat=chat, served_name="m", max_model_len=100)


def test_defaults_of_both_routes():
    chat, text = read(CHAT).generations[0], read({"prompt": "one two three"}, chat=False).generations[0]
    assert chat.max_new_tokens == 100 - len(chat.parts), "chats may fill the context"
    assert (len(text.parts), text.max_new_tokens) == (3, 16)


def test_prompts_may_be_lists_of_texts_or_tokens():
    assert [len(one.parts) for one in read({"prompt": ["a", "b c"]}, chat=False).generations] == [1, 2]
    assert [len(one.parts) for one in read({"prompt": [5, 6, 7]}, chat=False).generations] == [3]


@pytest.mark.parametrize(
    ("body", "chat", "status", "said"),
    [
        ({**CHAT, "model": "other"}, True, 404, "The model `other` does not exist."),
        ({"model": "m"}, True, 400, "'messages'"),
        ({"prompt": " w" * 100}, False, 400, "maximum context length is 100 tokens. However, your request has 100"),
        ({"prompt": " w" * 50, "max_tokens": 60}, False, 400, "50 input tokens (60 > 100 - 50)"),
        ({**CHAT, "max_tokens": 0}, True, 400, "max_tokens must be at least 1"),
        ({**CHAT, "temperature": -1}, True, 400, "temperature must be non-negative"),
        ({**CHAT, "temperature": 0, "n": 2}, True, 400, "greedy sampling"),
        ({"prompt": ""}, False, 400, "empty"),
        ([], True, 400, "dictionary"),
    ],
)
def test_refusals_have_vllms_body(body, chat, status, said):
    with pytest.raises(ApiError) as caught:
        read(body, chat)
    error = caught.value.body()["error"]
    assert error["code"] == caught.value.status == status
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")
    assert said in error["message"]
