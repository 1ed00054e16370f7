"""Requests of Ollama's API become generation requests, or are rejected with the name of the field."""

import msgspec
import pytest

from osaurusd.errors import InvalidRequest, UnsupportedParameter
from osaurusd.http.json import decode_json
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.request import ChatPrompt, JsonObject, JsonSchema, TextPrompt
from osaurusd.models.record import Capabilities
from osaurusd.protocols.ollama.names import parse_keep_alive, strip_tag
from osaurusd.protocols.ollama.requests import build_chat, build_generation
from osaurusd.protocols.ollama.types import IGNORED_OPTIONS, ChatRequest, GenerateRequest
from tests.osaurusd.protocols.helpers import THINKER, make_record, request_defaults

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def build(type_, convert, capabilities, fields):
    body = decode_json(msgspec.json.encode({"model": "m", **fields}), type_)
    return convert(body, make_record(capabilities), request_defaults(), ImageCollector())


def chat(capabilities=THINKER, **fields):
    return build(ChatRequest, build_chat, capabilities, {"messages": MESSAGES, **fields})


def generate(capabilities=THINKER, **fields):
    return build(GenerateRequest, build_generation, capabilities, {"prompt": "Hello", **fields})


def test_options_are_honored():
    options = {
        "num_predict": 7,
        "stop": ["a", ""],
        "seed": 3,
        "temperature": 3,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repeat_penalty": 1.5,
        "presence_penalty": 1,
        "frequency_penalty": -1,
    }
    request = chat(options=options)
    assert (request.max_tokens, request.stop) == (7, ["a"])
    sampling = request.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_k, sampling.top_p) == (3, 3.0, 5, 0.5)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -1.0)


@pytest.mark.parametrize("num_predict", [-1, -2, None])
def test_negative_num_predict_is_no_limit(num_predict):
    assert chat(options={"num_predict": num_predict}).max_tokens is None


@pytest.mark.parametrize("name", IGNORED_OPTIONS)
def test_options_of_llama_cpp_are_accepted(name):
    assert chat(options={name: 4096}) == chat()


@pytest.mark.parametrize(
    ("options", "penalty"),
    [
        ({"repeat_last_n": 64}, 1.0),
        ({"repeat_last_n": -1, "repeat_penalty": 1.1}, 1.1),
        ({"repeat_last_n": 0, "repeat_penalty": 1.1}, 1.0),
    ],
)
def test_repeat_last_n_is_accepted_where_it_can_be_honored(options, penalty):
    assert chat(options=options).sampling.repetition_penalty == penalty


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": {"repeat_last_n": 64, "repeat_penalty": 1.1}}, "options.repeat_last_n"),
        ({"options": {"mirostat": 1}}, "options.mirostat"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"top_k": "5"}}, "options.top_k"),
        ({"format": "xml"}, "format"),
        ({"think": "very"}, "think"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
    ],
)
def test_invalid_field_of_a_chat_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"context": [1, 2]}, "context"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"raw": True, "system": "Be brief"}, "system"),
    ],
)
def test_invalid_field_of_a_generation_is_named(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        generate(**fields)
    assert caught.value.param == param


def test_unsupported_options_are_accepted_at_their_neutral_value():
    assert chat(options={"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "unknown": 1}) == chat()
    assert generate(context=[], template="", images=[]) == generate()


@pytest.mark.parametrize("field", [{"raw": True}, {"suffix": "x"}])
def test_images_need_a_chat(field):
    with pytest.raises(InvalidRequest, match="`images`: cannot be combined"):
        generate(images=["aGk="], **field)


@pytest.mark.parametrize(
    ("value", "constraint"),
    [("", None), (None, None), ("json", JsonObject()), ({"type": "object"}, JsonSchema(schema={"type": "object"}))],
)
def test_format_constrains_the_output(value, constraint):
    assert chat(format=value).constraint == constraint
    assert generate(format=value).constraint == constraint


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_think_reaches_the_chat_template(think, variables):
    assert chat(think=think).prompt.template_variables == variables


def test_think_needs_a_model_that_can():
    assert chat(Capabilities(chat=True), think=False) == chat(Capabilities(chat=True))
    with pytest.raises(InvalidRequest, match="does not support thinking"):
        chat(Capabilities(chat=True), think=True)


def test_tool_calls_and_results_are_matched():
    messages = [
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "thinking": "Hm",
            "tool_calls": [
                {"function": {"name": "f", "arguments": {"a": 1}}},
                {"function": {"name": "g", "arguments": '{"b": 2}'}},
                {"function": {"name": "f"}, "id": "x"},
            ],
        },
        {"role": "tool", "content": "of x", "tool_call_id": "x"},
        {"role": "tool", "content": "of g", "tool_name": "g"},
        {"role": "tool", "content": "of f"},
        {"role": "tool", "content": "of nothing", "tool_name": "h"},
    ]
    _, assistant, *results = chat(messages=messages, tools=[TOOL]).prompt.messages
    assert assistant.reasoning == "Hm"
    first, second, third = assistant.tool_calls
    assert [call.arguments for call in (first, second, third)] == ['{"a":1}', '{"b": 2}', "{}"]
    found = [(part.call_id, part.name, part.text) for result in results for part in result.tool_results]
    assert found[:3] == [("x", "f", "of x"), (second.id, "g", "of g"), (first.id, "f", "of f")]
    assert found[3][1:] == ("h", "of nothing")
    assert len({call_id for call_id, _, _ in found}) == 4


def test_answer_at_the_end_is_continued():
    answer = {"role": "assistant", "content": "Well"}
    call = {"role": "assistant", "content": "Well", "tool_calls": [{"function": {"name": "f"}}]}
    assert chat(messages=[*MESSAGES, answer]).prompt.continues_answer
    for messages in (
        MESSAGES,
        [*MESSAGES, answer, *MESSAGES],
        [*MESSAGES, call],
        [*MESSAGES, {**answer, "content": ""}],
    ):
        assert not chat(messages=messages).prompt.continues_answer


def test_generation_uses_the_chat_template():
    prompt = generate(system="Be brief").prompt
    assert isinstance(prompt, ChatPrompt)
    assert [(message.role, message.text) for message in prompt.messages] == [("system", "Be brief"), ("user", "Hello")]


def test_generation_without_chat_template_continues_the_text():
    assert generate(raw=True).prompt == TextPrompt(text="Hello")
    assert generate(Capabilities()).prompt == TextPrompt(text="Hello")
    assert generate(suffix="!").prompt == TextPrompt(text="Hello", suffix="!")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        (0, 0),
        (1800, 1800),
        (1.5, 1.5),
        (-1, -1),
        ("-1", -1),
        ("0", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("-1m", -60),
        ("500ms", 0.5),
        (10**300, 10**9),
    ],
)
def test_keep_alive_has_many_forms(value, seconds):
    assert parse_keep_alive(value) == seconds


@pytest.mark.parametrize("value", ["forever", "5 m", "m", "5x", "1h-5m", "1" * 5000 + "x"])
def test_malformed_keep_alive_is_rejected(value):
    with pytest.raises(InvalidRequest, match="keep_alive"):
        parse_keep_alive(value)


def test_only_the_tag_of_clients_is_stripped():
    assert [strip_tag(name) for name in (None, "a", "a:latest", "a:8b")] == [None, "a", "a", "a:8b"]


def test_unsupported_option_has_its_own_error():
    with pytest.raises(UnsupportedParameter):
        chat(options={"mirostat": 2})


def test_results_without_names_belong_to_the_oldest_open_calls():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}, {"function": {"name": "g"}}] * 2}
    messages = [*MESSAGES, call, {"role": "tool", "tool_name": "g"}, *[{"role": "tool"}] * 3]
    _, assistant, *results = chat(messages=messages).prompt.messages

    oldest, named, *others = [call.id for call in assistant.tool_calls]
    assert [named, oldest, *others] == [part.call_id for result in results for part in result.tool_results]
