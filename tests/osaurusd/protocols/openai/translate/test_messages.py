"""From the turns of a chat to messages whose content is text."""

import pytest

from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import Message, ToolCall

from .asking import TALK, chat_order

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def said(*messages):
    return chat_order(messages=list(messages)).prompt.messages


@pytest.mark.parametrize(
    ("role", "expected"),
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")],
)
def test_roles_are_what_chat_templates_call_them(role, expected):
    assert [Message(role=expected, content="x")] == said({"role": role, "content": "x"})


@pytest.mark.parametrize("role", ["bot", "", "User", "user ", "system\n"])
def test_other_roles_are_refused_naming_those_there_are(role):
    with pytest.raises(InvalidRequest) as refusal:
        said(*TALK, {"role": role, "content": "x"})
    assert InvalidRequest is type(refusal.value)
    assert refusal.value.param == "messages[1].role"
    for name in ("system", "developer", "user", "assistant", "tool"):
        assert f"`{name}`" in refusal.value.message


def test_turns_stay_in_their_order():
    turns = [{"role": role, "content": str(at)} for at, role in enumerate(["system", "user", "assistant", "user"])]
    assert [Message(**turn) for turn in turns] == said(*turns)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ""),
        (" a\n", " a\n"),
        ("Grüße 🦕", "Grüße 🦕"),
        ([], ""),
        ([{"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b\n"}, {"type": "text", "text": ""}], "ab\n"),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_content_is_a_text_or_parts_that_make_one(role, content, expected):
    assert expected == said({"role": role, "content": content})[0].content


def test_names_and_earlier_thoughts_are_passed_on():
    turns = (
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
    )
    assert said(*turns) == [
        Message(role="user", content="a", name="Ann"),
        Message(role="assistant", content="b", reasoning="c"),
    ]


def test_a_call_and_its_answer_are_passed_on_and_the_answer_gets_the_functions_name():
    answer = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]}
    assert said(*TALK, CALLING, answer)[1:] == [
        Message(role="assistant", tool_calls=[ToolCall(id="call_1", name="weather", arguments='{"city": "Köln"}')]),
        Message(role="tool", content="rain", name="weather", tool_call_id="call_1"),
    ]


def test_an_answer_of_a_tool_may_bring_its_name_or_be_of_an_unknown_call():
    named = {"role": "tool", "tool_call_id": "call_1", "content": "x", "name": "mine"}
    stray = {"role": "tool", "tool_call_id": "call_2", "content": "x"}
    assert ["mine", None] == [message.name for message in said(CALLING, named, stray)[1:]]


def test_text_beside_calls_is_kept_and_no_calls_are_none():
    assert said({**CALLING, "content": "Let me see."})[0].content == "Let me see."
    assert said({"role": "assistant", "content": "x", "tool_calls": []}) == [Message(role="assistant", content="x")]


def test_our_own_answer_can_be_sent_back():
    answer = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    assert said(answer) == [Message(role="assistant", content="x")]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "tool_call_id": "1", "content": None}, "messages[1].content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[1].tool_calls"),
        ({**CALLING, "tool_calls": [{"id": "1", "type": "function"}]}, "messages[1].tool_calls[0].function"),
    ],
)
def test_a_turn_that_lacks_something_is_refused(message, param):
    with pytest.raises(InvalidRequest) as refusal:
        said(*TALK, message)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[1].role"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({**CALLING, "tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}, "messages[1].tool_calls[0].type"),
    ],
)
def test_what_is_not_done_is_refused_by_name(message, param):
    with pytest.raises(UnsupportedParameter) as refusal:
        said(*TALK, message)
    assert param == refusal.value.param
    assert f"`{param}`" in refusal.value.message


@pytest.mark.parametrize("message", [{"role": "user", "content": None}, {"role": "user"}, {"role": "assistant"}])
def test_a_message_without_content_is_refused(message):
    with pytest.raises(InvalidRequest) as refusal:
        said(*TALK, message)
    assert refusal.value.param == "messages[1].content"
    assert refusal.value.message == "`messages[1].content`: is required; a string or a list of text parts"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image_url"},
        {"type": "input_image", "image_url": "https://evil.example/x.png"},
        {"type": "image"},
    ],
)
def test_images_are_refused_as_what_they_are(part):
    with pytest.raises(ImageInputUnsupported) as refusal:
        said(*TALK, {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]})
    assert refusal.value.param == "messages[1].content[1]"


@pytest.mark.parametrize("kind", ["input_audio", "file", "refusal", "input_text", "", "TEXT"])
def test_other_parts_are_refused_by_their_type(kind):
    with pytest.raises(InvalidRequest) as refusal:
        said({"role": "user", "content": [{"type": kind, "text": "x"}]})
    assert InvalidRequest is type(refusal.value)
    assert refusal.value.param == "messages[0].content[0].type"
    assert repr(kind) in refusal.value.message


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}])
def test_a_text_part_without_text_is_refused(part):
    with pytest.raises(InvalidRequest) as refusal:
        said({"role": "user", "content": [part]})
    assert refusal.value.param == "messages[0].content[0].text"
