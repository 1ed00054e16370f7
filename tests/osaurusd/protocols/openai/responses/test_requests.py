"""What the model sees of a request."""

import msgspec
import pytest

from osaurusd.errors import ContextLengthExceeded, InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.inference.events import Completed, Delta, Finished, Started, Usage
from osaurusd.inference.request import JsonSchema
from osaurusd.protocols.openai.responses.items import encode_opaque, input_items, parse_items
from osaurusd.protocols.openai.responses.request import parse_request
from osaurusd.protocols.openai.responses.run import ResponseRun
from osaurusd.protocols.openai.responses.tools import custom_input
from osaurusd.protocols.openai.responses.types import ResponseRequest

from ...helpers import request_defaults

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
FILES = {"type": "namespace", "name": "files", "description": "", "tools": [{"type": "function", "name": "read"}]}


def parse(input_="x", history=(), **fields):
    body = decode_json(msgspec.json.encode({"input": input_, **fields}), ResponseRequest)
    return parse_request(body, history, request_defaults(), "model")


def messages(*items, instructions=None):
    parsed = parse_items(items, [f"input[{index}]" for index in range(len(items))], instructions, None)
    return [(message.role, message.text) for message in parsed.messages]


def test_instructions_and_leading_system_messages_are_one_message():
    items = [
        {"role": "developer", "content": "b"},
        {"role": "system", "content": [{"type": "input_text", "text": "c"}]},
        {"role": "user", "content": "d"},
        {"role": "developer", "content": "e"},
    ]
    assert [("system", "a\n\nb\n\nc"), ("user", "d"), ("system", "e")] == messages(*items, instructions="a")


def test_compaction_is_a_system_message():
    item = {"type": "compaction", "encrypted_content": encode_opaque("It is late.")}
    (system, text), user = messages(item, {"role": "user", "content": "d"}, instructions="a")
    assert ("system", ("user", "d")) == (system, user)
    assert text.startswith("a\n\n")
    assert text.endswith("It is late.")


def test_items_of_a_turn_are_one_message():
    call = {"type": "function_call", "call_id": "1", "name": "read", "namespace": "files", "arguments": "{}"}
    custom = {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": 'a "b"'}
    items = [
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I read."}]},
        call,
        custom,
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "text"}]},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "done"},
    ]
    turn, first, second = parse_items(items, ["input"] * 6, None, None).messages

    assert ("assistant", "hm", "I read.") == (turn.role, turn.reasoning, turn.text)
    assert ["files__read", "patch"] == [call.name for call in turn.tool_calls]
    assert 'a "b"' == custom_input(turn.tool_calls[1].arguments)
    assert [("files__read", "text"), ("patch", "done")] == [
        (each.content[0].name, each.text) for each in (first, second)
    ]


def test_items_get_ids_and_parts():
    (item,) = input_items("hello")
    assert ("message", "user", [{"type": "input_text", "text": "hello"}]) == (
        item["type"],
        item["role"],
        item["content"],
    )
    assert item["id"].startswith("msg_")


@pytest.mark.parametrize(
    ("choice", "visible", "required"),
    [
        ("auto", ["weather", "files__read"], None),
        ("none", [], None),
        ("required", ["weather", "files__read"], ["weather", "files__read"]),
        ({"type": "function", "name": "weather"}, ["weather", "files__read"], ["weather"]),
        ({"type": "function", "name": "read", "namespace": "files"}, ["weather", "files__read"], ["files__read"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            ["weather"],
            ["weather"],
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}, {"type": "function", "name": "read"}]},
            ["files__read"],
            None,
        ),
    ],
)
def test_tool_choice(choice, visible, required):
    request = parse(tools=[WEATHER, {"type": "local_shell"}, FILES], tool_choice=choice).generation

    assert visible == [tool.name for tool in request.prompt.tools]
    assert required == (request.constraint.names if request.constraint else None)


def custom_tool(**format_):
    return {"type": "custom", "name": "patch", "format": {"type": "grammar", **format_}}


def test_grammar_of_a_custom_tool_is_described_and_enforced():
    tools = [custom_tool(syntax="lark", definition="start: A"), {**custom_tool(syntax="regex", definition="a|b")}]
    tools[1]["name"] = "choose"
    lark, regex = parse(tools=tools).generation.prompt.tools

    assert "lark grammar:\nstart: A" in lark.description
    assert ("start: A", None) == (lark.grammar, regex.grammar)
    assert {"type": "string", "pattern": "^(?:a|b)$"} == regex.parameters["properties"]["input"]


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (custom_tool(syntax="lark"), "tools[0].format.definition"),
        (custom_tool(syntax="peg", definition="x"), "tools[0].format.syntax"),
        ({"type": "custom", "name": "patch", "format": {"type": "xml"}}, "tools[0].format.type"),
    ],
)
def test_invalid_format_of_a_custom_tool_is_named(tool, param):
    with pytest.raises(InvalidRequest) as caught:
        parse(tools=[tool])
    assert param == caught.value.param


def test_format_and_reasoning_are_applied():
    schema = {"type": "object"}
    parsed = parse(
        text={"format": {"type": "json_schema", "name": "a", "schema": schema}}, reasoning={"effort": "none"}
    )

    assert isinstance(parsed.generation.constraint, JsonSchema)
    assert {"reasoning_effort": "none", "enable_thinking": False} == parsed.generation.prompt.template_variables
    assert schema == parsed.response.text["format"]["schema"]


class ShortContext:
    """A service whose model accepts a limited number of messages."""

    def __init__(self, limit):
        self.limit = limit
        self.lengths = []

    async def generate(self, record, requests, images):
        messages = requests[0].prompt.messages
        self.lengths.append(len(messages))
        if len(messages) > self.limit:
            raise ContextLengthExceeded("too long", location=("prompt",))
        yield Started(prompt_tokens=1)
        yield Delta(text=messages[0].text)
        yield Finished(reason="stop")
        yield Completed(usage=Usage())


CHAT = [{"role": role, "content": str(index)} for index in range(4) for role in ("user", "assistant")]
LONG = [{"role": "system", "content": "system"}, *CHAT, {"role": "user", "content": "last"}]


@pytest.mark.parametrize(("limit", "lengths"), [(10, [10]), (8, [10, 8]), (6, [10, 8, 6]), (2, [10, 8, 6, 2])])
async def test_truncation_drops_the_oldest_turns(limit, lengths):
    service = ShortContext(limit)
    run = ResponseRun(service, None, parse(LONG, truncation="auto"), (), lambda _: None)
    response = await run.collect()

    assert lengths == service.lengths
    assert "system" == response.output[0]["content"][0]["text"]


@pytest.mark.parametrize(("limit", "truncation"), [(6, "disabled"), (1, "auto")])
async def test_prompt_that_cannot_be_shortened_is_rejected(limit, truncation):
    run = ResponseRun(ShortContext(limit), None, parse(LONG, truncation=truncation), (), lambda _: None)
    with pytest.raises(ContextLengthExceeded) as caught:
        await run.collect()
    assert "input" == caught.value.param


def test_seed_of_minus_one_is_random():
    assert parse(input="hi", seed=-1).generation.sampling.seed is None
    assert parse(input="hi", seed=7.0).generation.sampling.seed == 7
