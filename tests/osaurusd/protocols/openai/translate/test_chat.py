"""From a chat request to the worker's order."""

import msgspec
import pytest

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.request import ChatPrompt, JsonObject, JsonSchema, Message, SamplingParams
from osaurusd.protocols.openai.schema.chat import HARMLESS
from osaurusd.rpc import messages

from .asking import chat_order, nested, tool

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def form(**fields):
    return {"type": "json_schema", "json_schema": {"name": "answer", **fields}}


def test_a_plain_request_is_an_order_with_nothing_special():
    assert chat_order() == messages.Generate(
        id=0,
        prompt=ChatPrompt(messages=[Message(role="user", content="Hello")]),
        sampling=SamplingParams(temperature=1.0, top_p=1.0),
        call_tools=False,
    )


def test_a_full_request_is_all_that_it_says():
    order = chat_order(
        temperature=0,
        n=3,
        max_tokens=9,
        stop=["a"],
        logprobs=True,
        top_logprobs=5,
        reasoning_effort="low",
        tools=[tool(parameters=SCHEMA)],
        parallel_tool_calls=False,
    )
    assert order == messages.Generate(
        id=0,
        prompt=ChatPrompt(
            messages=[Message(role="user", content="Hello")],
            tools=[tool(parameters=SCHEMA)],
            template={"reasoning_effort": "low"},
        ),
        sampling=SamplingParams(temperature=0.0, top_p=1.0),
        n=3,
        max_tokens=9,
        stop=["a"],
        logprobs=5,
        call_tools=True,
        parallel_calls=False,
    )


@pytest.mark.parametrize(
    ("fields", "config", "expected"),
    [
        ({}, None, None),
        ({}, 100, 100),
        ({"max_tokens": 5}, 100, 5),
        ({"max_completion_tokens": 6}, 100, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 100, 6),
        ({"max_tokens": 6, "max_completion_tokens": 5}, None, 5),
        ({"max_tokens": 5, "max_completion_tokens": None}, 100, 5),
        ({"max_tokens": None, "max_completion_tokens": None}, 100, 100),
    ],
)
def test_the_newer_name_for_the_most_tokens_wins_and_the_config_comes_last(fields, config, expected):
    assert expected == chat_order(defaults=Defaults(max_tokens=config), **fields).max_tokens


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_log_probabilities_are_asked_for_by_two_fields(fields, expected):
    assert expected == chat_order(**fields).logprobs


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None}])
def test_likeliest_tokens_without_log_probabilities_are_refused(fields):
    with pytest.raises(InvalidRequest) as refusal:
        chat_order(top_logprobs=1, **fields)
    assert refusal.value.param == "top_logprobs"


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonObject()),
        (form(schema=SCHEMA, strict=False, description="x"), JsonSchema(schema=SCHEMA)),
        (form(schema={}), JsonSchema(schema={})),
    ],
)
def test_a_format_constrains_the_answer(response_format, expected):
    assert expected == chat_order(response_format=response_format).constraint


def test_an_answer_of_a_given_format_is_no_call():
    order = chat_order(response_format={"type": "json_object"}, tools=[tool()])
    assert (JsonObject(), False) == (order.constraint, order.call_tools)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": form()}, "response_format.json_schema.schema"),
        ({"response_format": form(schema=nested(101))}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_object"}, "tools": [tool()], "tool_choice": "required"},
            "response_format",
        ),
    ],
)
def test_a_format_that_cannot_be_had_is_refused(fields, param):
    with pytest.raises(InvalidRequest) as refusal:
        chat_order(**fields)
    assert InvalidRequest is type(refusal.value)
    assert param == refusal.value.param
    assert refusal.value.message.startswith(f"`{param}`: ")


ASKING = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "modalities": [["text", "audio"], ["audio"], "text"],
    "moderation": [{"model": "omni-moderation-latest"}],
    "prediction": [{"type": "content", "content": "x"}],
    "verbosity": ["high", "low"],
    "web_search_options": [{}, {"search_context_size": "low"}],
}


def test_there_is_an_asking_value_of_every_unsupported_field():
    assert sorted(HARMLESS) == sorted(ASKING)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ASKING.items() for value in values])
def test_what_is_not_done_is_refused_by_name(field, value):
    with pytest.raises(UnsupportedParameter) as refusal:
        chat_order(**{field: value})
    assert field == refusal.value.param
    assert f"`{field}`" in refusal.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field, values in HARMLESS.items() for value in values),
        *((field, None) for field in HARMLESS),
        ("frequency_penalty", 0.0),
        ("presence_penalty", 0),
        ("logit_bias", {}),
        ("n", 1),
        ("tool_choice", "none"),
    ],
)
def test_what_asks_for_nothing_changes_nothing(field, value):
    assert chat_order() == chat_order(**{field: value})


def test_an_order_can_be_sent():
    sent = chat_order(
        temperature=0,
        seed=2**63 - 1,
        max_tokens=2**53,
        logit_bias={"2147483647": 1},
        tools=[tool(parameters={"maximum": 10**40, "minimum": -1e300})],
        tool_choice="required",
        chat_template_kwargs=nested(100),
    )
    assert sent == messages.TO_WORKER.decode(msgspec.json.encode(sent))
