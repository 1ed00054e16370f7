"""Messages of a chat become neutral messages with typed content."""

import pytest

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import Message, TextPart, ToolCall, ToolResultPart

from .builders import MESSAGES, parse_chat

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def parse(*messages):
    return parse_chat(messages=list(messages)).prompt.messages


@pytest.mark.parametrize(
    ("role", "expected"),
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")],
)
def test_roles_become_those_of_chat_templates(role, expected):
    assert parse({"role": role, "content": "x"}) == [Message.from_text(expected, "x")]


@pytest.mark.parametrize("role", ["bot", "", "User", "user ", "system\n"])
def test_unknown_role_is_rejected_with_the_allowed_ones(role):
    with pytest.raises(InvalidRequest) as raised:
        parse(*MESSAGES, {"role": role, "content": "x"})
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == "messages[1].role"
    for name in ("system", "developer", "user", "assistant", "tool"):
        assert f"`{name}`" in raised.value.message


def test_messages_keep_their_order():
    roles = ["system", "user", "assistant", "user"]
    expected = [Message.from_text(role, str(index)) for index, role in enumerate(roles)]
    assert parse(*({"role": role, "content": str(index)} for index, role in enumerate(roles))) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", []),
        (" a\n", [" a\n"]),
        ("Grüße 🦕", ["Grüße 🦕"]),
        ([], []),
        ([{"type": "text", "text": "a"}], ["a"]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b\n"}], ["a", "b\n"]),
        (["a", {"type": "input_text", "text": "b"}, {"type": "output_text", "text": "c"}], ["a", "b", "c"]),
        ([{"type": "refusal", "refusal": "No."}], ["No."]),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_content_is_a_string_or_a_list_of_text_parts(role, content, expected):
    (message,) = parse({"role": role, "content": content})
    assert message.content == [TextPart(text=text) for text in expected]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_assistant_and_tool_messages_may_be_empty(content):
    assistant, tool = parse({"role": "assistant", **content}, {"role": "tool", "tool_call_id": "1", **content})
    assert (assistant.content, tool.tool_results[0].content) == ([], [])


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"thinking": "Hm."},
        {"reasoning": {"effort": "low"}, "thinking": "Hm."},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "x"}]},
    ],
)
def test_reasoning_is_found_under_the_names_of_other_servers(fields):
    assert parse({"role": "assistant", "content": "x", **fields}) == [
        Message.from_text("assistant", "x", reasoning="Hm.")
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ({}, "{}"),
        ([], "{}"),
        (None, "{}"),
        ('{"a": "\\ud83d\\ude00 \\ud83d"}', '{"a": "\\ud83d\\ude00 \\ufffd"}'),
        ("not JSON", "not JSON"),
    ],
)
def test_arguments_become_json_text(arguments, text):
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    assert parse({"role": "assistant", "tool_calls": [call]})[0].tool_calls == [
        ToolCall(id="1", name="f", arguments=text)
    ]


def test_calls_and_results_without_ids_are_matched_in_their_order():
    def call(name, **fields):
        return {"function": {"name": name, "arguments": "{}"}, **fields}

    def result(content, **fields):
        return {"role": "tool", "content": content, **fields}

    calling = {"role": "assistant", "tool_calls": [call("f"), call("g", id=""), call("f", id="mine", type=None)]}
    messages = parse(calling, result("1"), result("3", name="f"), result("2", tool_call_id=""))

    f, g, mine = messages[0].tool_calls
    assert len({f.id, g.id, mine.id}) == 3
    assert mine.id == "mine"
    results = [message.tool_results[0] for message in messages[1:]]
    assert [(each.call_id, each.name) for each in results] == [(f.id, "f"), ("mine", "f"), (g.id, "g")]


def test_names_and_earlier_reasoning_are_kept():
    messages = (
        {"role": "user", "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "b", "reasoning_content": "c"},
    )
    assert parse(*messages) == [
        Message.from_text("user", "a", name="Ann"),
        Message.from_text("assistant", "b", reasoning="c"),
    ]


def test_tool_result_gets_the_name_of_the_called_function():
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]}
    assert parse(*MESSAGES, CALLING, result)[1:] == [
        Message(role="assistant", tool_calls=[ToolCall(id="call_1", name="weather", arguments='{"city": "Köln"}')]),
        Message(
            role="tool",
            content=[ToolResultPart(call_id="call_1", name="weather", content=[TextPart(text="rain")])],
        ),
    ]


def test_tool_result_may_have_its_own_name_or_belong_to_an_unknown_call():
    named = {"role": "tool", "tool_call_id": "call_1", "content": "x", "name": "mine"}
    unknown = {"role": "tool", "tool_call_id": "call_2", "content": "x"}
    assert [message.tool_results[0].name for message in parse(CALLING, named, unknown)[1:]] == ["mine", None]


def test_text_next_to_tool_calls_is_kept():
    assert parse({**CALLING, "content": "Let me see."})[0].text == "Let me see."


def test_empty_list_of_tool_calls_is_none():
    message = {"role": "assistant", "content": "x", "tool_calls": []}
    assert parse(message) == [Message.from_text("assistant", "x")]


def test_message_of_an_earlier_response_can_be_sent_back():
    message = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    assert parse(message) == [Message.from_text("assistant", "x")]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[1].tool_calls"),
        ({**CALLING, "tool_calls": [{"id": "1", "type": "function"}]}, "messages[1].tool_calls[0].function"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[1].content[0].text"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "messages[1].content[0].refusal"),
    ],
)
def test_incomplete_message_is_rejected(message, param):
    with pytest.raises(InvalidRequest) as raised:
        parse(*MESSAGES, message)
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: ")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "name": "f", "content": "x"}, "messages[1].role"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, "messages[1].function_call"),
        ({"role": "assistant", "audio": {"id": "a"}}, "messages[1].audio"),
        ({**CALLING, "tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}, "messages[1].tool_calls[0].type"),
    ],
)
def test_unsupported_field_is_rejected_by_name(message, param):
    with pytest.raises(UnsupportedParameter) as raised:
        parse(*MESSAGES, message)
    assert raised.value.param == param
    assert f"`{param}`" in raised.value.message


@pytest.mark.parametrize("type_", ["input_audio", "file", "image", "", "TEXT"])
def test_other_part_is_rejected_by_its_type(type_):
    with pytest.raises(InvalidRequest) as raised:
        parse({"role": "user", "content": [{"type": type_, "text": "x"}]})
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == "messages[0].content[0].type"
    assert f'"{type_}"' in raised.value.message
