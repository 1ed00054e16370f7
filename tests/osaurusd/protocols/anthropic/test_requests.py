"""Requests of Anthropic's API become generation requests, or are rejected with the name of the field."""

import msgspec
import pytest

from osaurusd.config import Config
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.http.json import decode_json
from osaurusd.inference.request import JsonSchema, Message, RequiredToolCalls, TextPart, ToolCall, ToolResultPart
from osaurusd.models.record import Capabilities
from osaurusd.protocols.anthropic.requests import build_message, build_prompt
from osaurusd.protocols.anthropic.types import IGNORED_FIELDS, CountTokensRequest, MessagesRequest
from tests.osaurusd.protocols.helpers import THINKER, make_record, request_defaults

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"name": "weather", "description": "Look", "input_schema": SCHEMA}, {"name": "time", "type": "custom"}]
BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1234;"}
FORMAT = {"type": "json_schema", "schema": SCHEMA}


def build(capabilities=THINKER, **fields):
    body = {"model": "m", "max_tokens": 10, "messages": user("Hello"), **fields}
    decoded = decode_json(msgspec.json.encode(body), MessagesRequest)
    return build_message(decoded, make_record(capabilities), request_defaults())


def request(**fields):
    return build(**fields).request


def messages(*items, **fields):
    return request(messages=list(items), **fields).prompt.messages


def user(*content):
    return [message("user", *content)]


def message(role, *content):
    return {"role": role, "content": content[0] if isinstance(content[0], str) else list(content)}


def text(content):
    return {"type": "text", "text": content, "cache_control": {"type": "ephemeral"}, "citations": None}


def result(call_id="toolu_1", **fields):
    return {"type": "tool_result", "tool_use_id": call_id, **fields}


def use(call_id="toolu_1", **arguments):
    return {"type": "tool_use", "id": call_id, "name": "weather", "input": arguments}


def test_sampling_and_limits_are_converted():
    built = request(max_tokens=7, stop_sequences=["a", ""], temperature=0.5, top_k=5, top_p=0.5)
    assert (built.max_tokens, built.stop) == (7, ["a"])
    assert (built.sampling.temperature, built.sampling.top_k, built.sampling.top_p) == (0.5, 5, 0.5)


def test_memory_is_not_reserved_for_the_limit_of_tokens():
    assert not request(max_tokens=2**40).reserve_output


def test_ignored_fields_are_accepted():
    assert request(**{name: {"any": ["value"]} for name in IGNORED_FIELDS}) == request()


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_system_prompt_comes_first(system):
    assert messages(*user("Hi"), system=system) == [
        Message.from_text("system", "Be brief."),
        Message.from_text("user", "Hi"),
    ]


def test_billing_block_is_dropped():
    assert messages(*user("Hi"), system=[BILLING]) == [Message.from_text("user", "Hi")]
    first, _ = messages(*user("Hi"), system=[BILLING, text("One."), text("Two.")])
    assert first.text == "One.\n\nTwo."
    second, _ = messages(*user("Hi"), system=[text("One."), BILLING])
    assert BILLING["text"] in second.text


def test_system_role_in_messages_is_accepted():
    parsed = messages(*user("Hi"), message("system", text("Be brief.")), *user("Now"))
    assert [one.role for one in parsed] == ["user", "system", "user"]


def test_blocks_of_text_are_separated():
    (parsed,) = messages(*user(text("One."), text(""), text("Two.")))
    assert parsed.content == [TextPart(text="One."), TextPart(text="\n\nTwo.")]


def test_document_of_text_is_text():
    document = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    assert messages(*user(document))[0].text == "T\nD"


def test_results_of_tools_come_before_text():
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    answer = message("assistant", thinking, redacted, text("Look:"), use(city="Paris"), use("toolu_2"))
    results = message("user", text("So?"), result(content="sunny"), result("toolu_2", content=[text("a"), text("b")]))
    assert messages(answer, results) == [
        Message(
            role="assistant",
            content=[TextPart(text="Look:")],
            reasoning="Hm.",
            tool_calls=[
                ToolCall(id="toolu_1", name="weather", arguments='{"city":"Paris"}'),
                ToolCall(id="toolu_2", name="weather", arguments="{}"),
            ],
        ),
        Message(role="tool", content=[tool_result("toolu_1", "sunny")]),
        Message(role="tool", content=[tool_result("toolu_2", "a", "\n\nb")]),
        Message.from_text("user", "So?"),
    ]


def tool_result(call_id, *texts, **fields):
    parts = [TextPart(text=text) for text in texts]
    return ToolResultPart(call_id=call_id, name="weather", content=parts, **fields)


def test_model_sees_that_a_tool_failed():
    _, parsed = messages(message("assistant", use()), *user(result(content="no network", is_error=True)))
    assert parsed.content == [tool_result("toolu_1", "Error: ", "no network", is_error=True)]
    _, parsed = messages(message("assistant", use()), *user(result()))
    assert parsed.content == [tool_result("toolu_1")]


@pytest.mark.parametrize(
    ("content", "error", "param"),
    [
        ({"type": "image", "source": {}}, InvalidRequest, "messages[0].content[0].source.type"),
        (result(content=[{"type": "image"}]), InvalidRequest, "messages[0].content[0].content[0].source.type"),
        ({"type": "document", "source": {"type": "base64"}}, UnsupportedParameter, "messages[0].content[0].source"),
        ({"type": "server_tool_use"}, UnsupportedParameter, "messages[0].content[0].type"),
        ({"type": "text"}, InvalidRequest, "messages[0].content[0].text"),
        ({"type": "tool_result"}, InvalidRequest, "messages[0].content[0].tool_use_id"),
        (use(), UnsupportedParameter, "messages[0].content[0].type"),
    ],
)
def test_unusable_block_is_named(content, error, param):
    with pytest.raises(error, match=r"^`") as caught:
        request(messages=user(content))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [*user("Hi"), message("assistant", use())]}, "messages[1].content"),
        ({"messages": [*user("Hi"), message("assistant", "{")], "output_format": FORMAT}, "output_format"),
        (
            {"messages": [message("assistant", {"type": "tool_use", "name": "a"}), *user("")]},
            "messages[0].content[0].id",
        ),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"name": "search", "type": "web_search_20250305"}]}, "tools[0].type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "any"}, "output_format": FORMAT}, "output_format"),
        ({"container": "x"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)
def test_unusable_field_is_named(fields, param):
    with pytest.raises(InvalidRequest, match=r"^`") as caught:
        request(**fields)
    assert caught.value.param == param


def test_tools_are_converted():
    tool, other = request(tools=TOOLS).prompt.tools
    assert (tool.name, tool.description, tool.parameters) == ("weather", "Look", SCHEMA)
    assert other.parameters is None
    assert request(tools=TOOLS).parse_tool_calls
    assert not request().parse_tool_calls


@pytest.mark.parametrize(
    ("choice", "required", "parallel"),
    [
        ({"type": "auto"}, None, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, None, False),
        ({"type": "any"}, RequiredToolCalls(names=["weather", "time"], max_calls=8), True),
        ({"type": "any", "disable_parallel_tool_use": True}, RequiredToolCalls(names=["weather", "time"]), False),
        ({"type": "tool", "name": "time"}, RequiredToolCalls(names=["time"]), True),
    ],
)
def test_tool_choice_is_converted(choice, required, parallel):
    built = request(tools=TOOLS, tool_choice=choice)
    if required and required.max_calls > 1:
        required = RequiredToolCalls(names=required.names, max_calls=Config().input.max_forced_calls)
    assert (built.constraint, built.parallel_tool_calls, len(built.prompt.tools)) == (required, parallel, 2)


def test_tools_can_be_disabled():
    built = request(tools=TOOLS, tool_choice={"type": "none"})
    assert (built.prompt.tools, built.parse_tool_calls) == ([], False)


@pytest.mark.parametrize("fields", [{"output_config": {"format": FORMAT}}, {"output_format": FORMAT}])
def test_format_of_the_output_is_a_constraint(fields):
    built = request(tools=TOOLS, **fields)
    assert isinstance(built.constraint, JsonSchema)
    assert (built.constraint.schema, built.parse_tool_calls) == (SCHEMA, False)


@pytest.mark.parametrize("kind", ["enabled", "adaptive", "between_tools", "disabled", None])
def test_thinking_is_a_switch_of_the_template(kind):
    thinking = None if kind is None else {"type": kind, "budget_tokens": 1024}
    variables = request(thinking=thinking, output_config={"effort": "high"}).prompt.template_variables
    assert variables == {"enable_thinking": kind not in ("disabled", None), "reasoning_effort": "high"}
    assert request(thinking=thinking, capabilities=Capabilities(chat=True)).prompt.template_variables == {}


def test_errors_of_lower_layers_name_the_message():
    paths = build(messages=[*user(result(content="a"), text("b")), *user("c")], system="s", tools=TOOLS).paths
    locations = [("prompt", "messages", index, "content") for index in range(4)]
    assert [paths.path(location) for location in locations] == ["system", "messages[0]", "messages[0]", "messages[1]"]
    assert paths.path(("prompt", "tools", 1, "parameters")) == "tools[1].input_schema"
    assert paths.path(("constraint", "names")) == "tool_choice"
    assert build(output_format=FORMAT).paths.path(("constraint", "schema")) == "output_format.schema"
    assert paths.path(("prompt",)) == "messages"


def test_answer_at_the_end_is_continued():
    assert request(messages=[*user("Hi"), message("assistant", "Well")]).prompt.continues_answer
    assert not request(messages=[*user("Hi"), message("assistant", "Well"), *user("?")]).prompt.continues_answer


def test_count_has_the_prompt_of_the_message():
    fields = {"messages": user("Hi"), "system": "s", "tools": TOOLS, "thinking": {"type": "adaptive"}}
    body = decode_json(msgspec.json.encode(fields), CountTokensRequest)
    counted = build_prompt(body, make_record(), request_defaults()).request
    assert counted.prompt == request(**fields).prompt
