"""A chat request becomes a generation request."""

import json

import msgspec
import pytest

from osaurusd.config import Defaults
from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonObject,
    JsonSchema,
    Message,
    SamplingParams,
    TextChoice,
    Tool,
)
from osaurusd.protocols.openai.chat import build_request
from osaurusd.protocols.openai.chat_types import NO_OP_VALUES
from osaurusd.protocols.openai.output_format import UNSUPPORTED
from osaurusd.rpc import messages
from tests.osaurusd.inference.builders import nested

from .builders import decode_chat, parse_chat, parse_completion, tool

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
HELLO = [Message.from_text("user", "Hello")]


def json_schema(**fields):
    return {"type": "json_schema", "json_schema": {"name": "answer", **fields}}


def test_minimal_request_has_default_values():
    assert parse_chat() == GenerationRequest(
        prompt=ChatPrompt(messages=HELLO),
        sampling=SamplingParams(temperature=0.0, top_p=1.0),
        parse_tool_calls=False,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"return_progress": True, "stream": True}, True), ({"return_progress": True}, False), ({"stream": True}, False)],
)
def test_progress_is_reported_in_streams_on_request(fields, expected):
    assert parse_chat(**fields).report_progress is expected


def test_every_field_is_converted():
    request = parse_chat(
        temperature=0,
        n=3,
        max_tokens=9,
        stop=["a"],
        logprobs=True,
        top_logprobs=5,
        reasoning_effort="low",
        tools=[tool(parameters=SCHEMA, description="Does it.")],
        parallel_tool_calls=False,
    )
    assert request == GenerationRequest(
        prompt=ChatPrompt(
            messages=HELLO,
            tools=[Tool(name="f", description="Does it.", parameters=SCHEMA)],
            template_variables={"reasoning_effort": "low"},
        ),
        sampling=SamplingParams(temperature=0.0, top_p=1.0),
        n=3,
        max_tokens=9,
        stop=["a"],
        logprobs=5,
        parse_tool_calls=True,
        parallel_tool_calls=False,
    )


def test_sampling_fields_are_converted_for_both_endpoints():
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "frequency_penalty": -2.0,
        "presence_penalty": 1.5,
        "seed": 7,
    }
    expected = SamplingParams(**fields, logit_bias=[(50256, -100.0), (0, 2.5)])
    fields["logit_bias"] = {"50256": -100, "0": 2.5}

    assert parse_chat(**fields).sampling == expected
    assert parse_completion(prompt="a", **fields)[0].sampling == expected


@pytest.mark.parametrize("key", ["", "a", "-1", "+1", "01", "1.0", " 1", "1_0", "\u0661", "2147483648", "9" * 5000])
def test_logit_bias_key_that_is_not_a_token_id_is_rejected(key):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(logit_bias={key: 1})
    assert raised.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, []),
        ([], []),
        ("", []),
        ([""], []),
        ([None, "", "###"], ["###"]),
        ("###", ["###"]),
        (["###"], ["###"]),
        (["\n\n", "###"], ["\n\n", "###"]),
    ],
)
def test_stop_is_one_string_or_a_list(stop, expected):
    assert parse_chat(stop=stop).stop == expected
    assert parse_completion(stop=stop)[0].stop == expected


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
        ({"max_tokens": 4.0}, 100, 4),
        ({"max_tokens": -1}, 100, None),
        ({"max_completion_tokens": -1}, 100, None),
        ({"max_completion_tokens": -1, "max_tokens": 5}, 100, None),
        ({"max_completion_tokens": 5, "max_tokens": -1}, 100, 5),
        ({"max_tokens": None, "max_completion_tokens": None}, 100, 100),
    ],
)
def test_max_completion_tokens_overrides_max_tokens_and_both_the_configuration(fields, config, expected):
    assert parse_chat(Defaults(max_tokens=config), **fields).max_tokens == expected


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_zero_tokens_are_rejected(field):
    with pytest.raises(InvalidRequest, match="-1 for no limit") as raised:
        parse_chat(**{field: 0})
    assert raised.value.param == field


def test_whole_floats_are_integers():
    integers = {"n": 2, "seed": 7, "top_k": 40, "top_logprobs": 3, "max_tokens": 9}
    floats = {name: float(value) for name, value in integers.items()}
    assert msgspec.json.encode(parse_chat(logprobs=True, **floats)) == msgspec.json.encode(
        parse_chat(logprobs=True, **integers)
    )
    completion = {"n": 2, "best_of": 2, "logprobs": 3, "max_tokens": 9}
    as_floats = {name: float(value) for name, value in completion.items()}
    assert msgspec.json.encode(parse_completion(**as_floats)) == msgspec.json.encode(parse_completion(**completion))


@pytest.mark.parametrize(("seed", "expected"), [(None, None), (-1, None), (-2, -2), (0, 0)])
def test_seed_of_minus_one_is_random(seed, expected):
    assert parse_chat(seed=seed).sampling.seed == expected


@pytest.mark.parametrize("fields", [{"verbosity": "low"}, {"prediction": {"type": "content", "content": "x"}}])
def test_fields_that_cannot_make_an_answer_wrong_are_ignored(fields):
    assert parse_chat(**fields) == parse_chat()


@pytest.mark.parametrize("field", ["logit_bias", "stream_options", "chat_template_kwargs"])
def test_empty_object_may_be_an_empty_list(field):
    assert parse_chat(**{field: []}) == parse_chat(**{field: {}}) == parse_chat()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_are_requested_by_two_fields(fields, expected):
    assert parse_chat(**fields).logprobs == expected


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None}])
def test_top_logprobs_without_logprobs_is_rejected(fields):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(top_logprobs=1, **fields)
    assert raised.value.param == "top_logprobs"


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonObject(describe=True)),
        (json_schema(schema=SCHEMA, strict=False, description="x"), JsonSchema(schema=SCHEMA, describe=True)),
        (json_schema(schema={}), JsonSchema(schema={}, describe=True)),
        (json_schema(schema=[]), JsonSchema(schema={}, describe=True)),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"type": "json_schema", "name": "x", "schema": SCHEMA}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"type": "json_object", "schema": SCHEMA}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"type": "json_object", "json_schema": {"schema": SCHEMA}}, JsonSchema(schema=SCHEMA, describe=True)),
    ],
)
def test_response_format_becomes_a_constraint(response_format, expected):
    assert parse_chat(response_format=response_format).constraint == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_json": SCHEMA}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"guided_choice": ["a", "b"]}, TextChoice(choices=["a", "b"], describe=True)),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"structured_outputs": {"choice": ["a"]}}, TextChoice(choices=["a"], describe=True)),
        ({"structured_outputs": {"json_object": True}}, JsonObject(describe=True)),
        ({"json_schema": SCHEMA}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"format": "json"}, JsonObject(describe=True)),
        ({"format": SCHEMA, "response_format": {"type": "text"}}, JsonSchema(schema=SCHEMA, describe=True)),
        ({"guided_json": None, "guided_choice": [], "format": "", "grammar": "", "json_schema": {}}, None),
    ],
)
def test_formats_of_other_servers_become_constraints(fields, expected):
    assert parse_chat(**fields).constraint == expected
    completion = {name: value for name, value in fields.items() if name != "response_format"}
    assert parse_completion(prompt="a", **completion)[0].constraint == expected


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        *(({name: "x"}, UnsupportedParameter, name) for name in UNSUPPORTED),
        ({"structured_outputs": {"regex": "a+"}}, UnsupportedParameter, "structured_outputs.regex"),
        ({"structured_outputs": {"json": SCHEMA, "choice": ["a"]}}, InvalidRequest, "structured_outputs"),
        ({"structured_outputs": "json"}, InvalidRequest, "structured_outputs"),
        ({"guided_json": "{"}, InvalidRequest, "guided_json"),
        ({"guided_json": [1]}, InvalidRequest, "guided_json"),
        ({"guided_choice": ["a", 1]}, InvalidRequest, "guided_choice"),
        ({"guided_choice": [""]}, InvalidRequest, "guided_choice"),
        ({"format": "xml"}, InvalidRequest, "format"),
        ({"guided_json": SCHEMA, "guided_choice": ["a"]}, InvalidRequest, "guided_choice"),
        ({"guided_json": SCHEMA, "tools": [tool()], "tool_choice": "required"}, InvalidRequest, "guided_json"),
    ],
)
def test_format_that_cannot_be_honored_is_rejected(fields, error, param):
    with pytest.raises(error) as raised:
        parse_chat(**fields)
    assert type(raised.value) is error
    assert raised.value.param == param


def test_description_of_the_format_can_be_disabled():
    defaults = RequestDefaults(temperature=1.0, top_p=1.0, describe_schema=False)
    body = decode_chat(response_format={"type": "json_object"})
    assert build_request(body, defaults, ImageCollector()).constraint == JsonObject()


def test_formatted_output_is_not_parsed_for_tool_calls():
    request = parse_chat(response_format={"type": "json_object"}, tools=[tool()])
    assert (request.constraint, request.parse_tool_calls) == (JsonObject(describe=True), False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": json_schema()}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_object"}, "tools": [tool()], "tool_choice": "required"},
            "response_format",
        ),
    ],
)
def test_invalid_response_format_is_rejected(fields, param):
    with pytest.raises(InvalidRequest) as raised:
        parse_chat(**fields)
    assert type(raised.value) is InvalidRequest
    assert raised.value.param == param
    assert raised.value.message.startswith(f"`{param}`: ")


UNSUPPORTED_VALUES: dict[str, list[object]] = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "function_call": [{"name": "f"}],
    "functions": [[{"name": "f"}]],
    "modalities": [["text", "audio"], ["audio"], "text"],
    "moderation": [{"model": "omni-moderation-latest"}],
    "web_search_options": [{}, {"search_context_size": "low"}],
}


def test_every_unsupported_field_is_covered_here():
    assert sorted(UNSUPPORTED_VALUES) == sorted(NO_OP_VALUES)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in UNSUPPORTED_VALUES.items() for value in values]
)
def test_unsupported_field_is_rejected_by_name(field, value):
    with pytest.raises(UnsupportedParameter, match=f"`{field}`") as raised:
        parse_chat(**{field: value})
    assert raised.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field, values in NO_OP_VALUES.items() for value in values),
        *((field, None) for field in NO_OP_VALUES),
        ("frequency_penalty", 0.0),
        ("presence_penalty", 0),
        ("logit_bias", {}),
        ("n", 1),
        ("tool_choice", "none"),
        ("chat_template_kwargs", {}),
    ],
)
def test_no_op_value_is_accepted(field, value):
    assert parse_chat(**{field: value}) == parse_chat()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False}),
        (
            {"chat_template_kwargs": {"enable_thinking": False, "a": [1, None]}},
            {"enable_thinking": False, "a": [1, None]},
        ),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "low"}},
            {"reasoning_effort": "low", "enable_thinking": True},
        ),
    ],
)
def test_template_variables_override_reasoning_effort(fields, expected):
    assert parse_chat(**fields).prompt.template_variables == expected


@pytest.mark.parametrize("effort", ["", "High", "ultra"])
def test_unknown_reasoning_effort_is_rejected_with_the_allowed_ones(effort):
    with pytest.raises(InvalidRequest, match="`minimal`") as raised:
        parse_chat(reasoning_effort=effort)
    assert raised.value.param == "reasoning_effort"


def test_final_message_is_continued_on_request():
    answer = {"role": "assistant", "content": "Well"}
    messages = [{"role": "user", "content": "Hi"}, answer]
    assert not parse_chat(messages=messages).prompt.continues_answer
    assert not parse_chat(messages=messages, add_generation_prompt=True).prompt.continues_answer
    for fields in ({}, {"add_generation_prompt": False}):
        assert parse_chat(messages=messages, continue_final_message=True, **fields).prompt.continues_answer


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "continue_final_message": True,
                "add_generation_prompt": True,
                "messages": [{"role": "assistant", "content": "Well"}],
            },
            "continue_final_message",
        ),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_final_message_that_cannot_be_continued_is_rejected(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(**fields)
    assert caught.value.param == param


def test_extreme_values_reach_the_worker_unchanged():
    request = parse_chat(
        temperature=0,
        seed=2**63 - 1,
        max_tokens=2**53,
        logit_bias={"2147483647": 1},
        tools=[tool(parameters={"maximum": 10**40, "minimum": -1e300})],
        tool_choice="required",
        chat_template_kwargs=nested(100),
    )
    frame = messages.Generate(id=1, request=request)
    assert messages.TO_WORKER.decode(msgspec.json.encode(frame)) == frame
