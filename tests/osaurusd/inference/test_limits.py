"""Every limit of `[input]` is enforced, and its error has the location, the limit and its key."""

import pytest

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.inference import limits
from osaurusd.inference.request import (
    JsonSchema,
    Message,
    SamplingParams,
    TextChoice,
    TextPart,
    Tool,
    ToolCall,
    ToolResultPart,
)

from .builders import build_chat_request, build_request, nested

SMALL = Input(
    max_messages=2,
    max_parts=2,
    max_tool_calls=1,
    max_name_length=5,
    max_stop_strings=2,
    max_stop_length=3,
    max_tools=2,
    max_schema_bytes=60,
    max_schema_depth=3,
    max_choices=2,
    max_top_logprobs=2,
    max_logit_bias=1,
    max_prompts=2,
    max_inputs=2,
)
LONG = "x" * 6
PARTS = [TextPart(text="a")] * 3
USER = Message.from_text("user", "hello")
LARGE = {"a": "x" * 60}


def chat(*messages, **prompt):
    return build_chat_request(*messages, prompt=prompt)


def calls(*calls):
    return Message(role="assistant", tool_calls=list(calls))


def tool_message(call_id="c", content=(), **fields):
    return Message(role="tool", content=[ToolResultPart(call_id=call_id, content=list(content), **fields)])


CALL = ToolCall(id="c", name="f", arguments="{}")

EXCEEDED = [
    (chat(USER, USER, USER), ("prompt", "messages"), "max_messages"),
    (chat(Message(role="user", content=PARTS)), ("prompt", "messages", 0, "content"), "max_parts"),
    (chat(USER, Message(role="user", name=LONG)), ("prompt", "messages", 1, "name"), "max_name_length"),
    (chat(calls(CALL, CALL)), ("prompt", "messages", 0, "tool_calls"), "max_tool_calls"),
    (
        chat(calls(ToolCall(id=LONG, name="f", arguments=""))),
        ("prompt", "messages", 0, "tool_calls", 0, "id"),
        "max_name_length",
    ),
    (
        chat(USER, calls(ToolCall(id="", name=LONG, arguments=""))),
        ("prompt", "messages", 1, "tool_calls", 0, "name"),
        "max_name_length",
    ),
    (chat(tool_message(LONG)), ("prompt", "messages", 0, "tool_results", 0, "call_id"), "max_name_length"),
    (chat(tool_message(name=LONG)), ("prompt", "messages", 0, "tool_results", 0, "name"), "max_name_length"),
    (chat(USER, tool_message(content=PARTS)), ("prompt", "messages", 1, "tool_results", 0, "content"), "max_parts"),
    (chat(tools=[Tool(name=name) for name in "abc"]), ("prompt", "tools"), "max_tools"),
    (
        chat(tools=[Tool(name=name, parameters={"a": "x" * 30}) for name in "ab"]),
        ("prompt", "tools"),
        "max_schema_bytes",
    ),
    (
        chat(tools=[Tool(name="a"), Tool(name="b", parameters=nested(4))]),
        ("prompt", "tools", 1, "parameters"),
        "max_schema_depth",
    ),
    (chat(template_variables=LARGE), ("prompt", "template_variables"), "max_schema_bytes"),
    (chat(template_variables=nested(4)), ("prompt", "template_variables"), "max_schema_depth"),
    (build_request(constraint=JsonSchema(schema=LARGE)), ("constraint", "schema"), "max_schema_bytes"),
    (build_request(constraint=JsonSchema(schema=nested(4))), ("constraint", "schema"), "max_schema_depth"),
    (build_request(constraint=TextChoice(choices=["x" * 60])), ("constraint", "choices"), "max_schema_bytes"),
    (build_request(n=3), ("n",), "max_choices"),
    (build_request(stop=["a"] * 3), ("stop",), "max_stop_strings"),
    (build_request(stop=["a", "abcd"]), ("stop", 1), "max_stop_length"),
    (build_request(logprobs=3), ("logprobs",), "max_top_logprobs"),
    (
        build_request(sampling=SamplingParams(temperature=0, logit_bias=[(1, 1.0), (2, 1.0)])),
        ("sampling", "logit_bias"),
        "max_logit_bias",
    ),
]
OUTSIDE_OF_A_REQUEST = [
    (limits.MODEL, LONG, "max_name_length"),
    (limits.PROMPTS, range(3), "max_prompts"),
    (limits.INPUTS, range(3), "max_inputs"),
    (limits.DOCUMENTS, range(3), "max_inputs"),
]


@pytest.mark.parametrize(("request_", "location", "key"), EXCEEDED)
def test_request_over_a_limit_is_rejected_with_location_limit_and_key(request_, location, key):
    with pytest.raises(InvalidRequest) as raised:
        limits.check_request(request_, SMALL)
    assert raised.value.location == location
    assert raised.value.message.startswith(f"at most {getattr(SMALL, key)} ")
    assert raised.value.message.endswith(f"(`input.{key}`)")


@pytest.mark.parametrize(("location", "value", "key"), OUTSIDE_OF_A_REQUEST)
def test_value_outside_of_the_request_is_checked_by_its_location(location, value, key):
    with pytest.raises(InvalidRequest, match=f"at most {getattr(SMALL, key)} .*not {len(value)}") as raised:
        limits.check_value(location, value, SMALL)
    assert raised.value.location == location


def test_the_questions_of_a_decision_are_limited_by_their_size():
    with pytest.raises(
        InvalidRequest, match=r"at most 1 bytes of JSON, not 6 \(`input.max_question_bytes`\)"
    ) as raised:
        limits.check_value(limits.QUESTIONS, ["xx"], Input(max_question_bytes=1))
    assert raised.value.location == limits.QUESTIONS


def test_every_limit_is_covered_here():
    def pattern(location):
        return tuple(limits.EACH if isinstance(step, int) else step for step in location)

    covered = {(key, pattern(location)) for _, location, key in EXCEEDED}
    covered |= {(key, location) for location, _, key in OUTSIDE_OF_A_REQUEST}
    covered.add(("max_question_bytes", limits.QUESTIONS))
    assert covered == {(limit.key, limit.location) for limit in limits.LIMITS}


def test_every_key_of_the_configuration_is_a_limit():
    # This one limits the response.
    assert {limit.key for limit in limits.LIMITS} == set(Input.__struct_fields__) - {"max_forced_calls"}


@pytest.mark.parametrize(
    "request_",
    [
        chat(USER, USER),
        chat(Message(role="user", content=PARTS[:2], name="x" * 5)),
        chat(calls(CALL), tool_message("x" * 5, PARTS[:2])),
        chat(tools=[Tool(name=name, parameters=nested(3)) for name in "ab"]),
        build_request(n=2, stop=["abc", "a"], logprobs=2),
        build_request("x" * 1000),
    ],
)
def test_request_at_the_limits_is_accepted(request_):
    limits.check_request(request_, SMALL)
