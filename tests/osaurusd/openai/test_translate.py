"""From a request to the worker's order."""

import msgspec
import pytest

from osaurusd import ipc
from osaurusd.catalog.record import GenerationDefaults
from osaurusd.config import Defaults
from osaurusd.errors import ImageInputUnsupported, InvalidRequest, UnsupportedParameter
from osaurusd.openai import translate
from osaurusd.openai.schema import HARMLESS, ChatRequest
from osaurusd.web import body

TALK = [{"role": "user", "content": "Hello"}]


def order(model=None, defaults=None, **fields):
    request = body.decode(msgspec.json.encode({"messages": TALK, **fields}), ChatRequest)
    return translate.chat(request, model or GenerationDefaults(), defaults or Defaults())


def said(*messages):
    return order(messages=list(messages)).messages


def test_a_plain_request_is_the_config_files_defaults():
    assert order() == ipc.Generate(
        id=0,
        messages=[ipc.Message(role="user", content="Hello")],
        sampling=ipc.Sampling(temperature=1.0, top_p=1.0, seed=None),
        max_tokens=None,
        stop=[],
    )


def test_a_full_request_is_all_that_it_says():
    assert order(temperature=0.5, top_p=0.25, seed=7, max_tokens=9, stop=["a", "b"]) == ipc.Generate(
        id=0,
        messages=[ipc.Message(role="user", content="Hello")],
        sampling=ipc.Sampling(temperature=0.5, top_p=0.25, seed=7),
        max_tokens=9,
        stop=["a", "b"],
    )


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize(
    ("request_", "model", "config", "expected"),
    [
        (0.1, 0.2, 0.3, 0.1),
        (None, 0.2, 0.3, 0.2),
        (None, None, 0.3, 0.3),
        (0.1, None, 0.3, 0.1),
        (None, None, None, 1.0),
    ],
)
def test_the_request_wins_over_the_model_and_that_over_the_config(name, request_, model, config, expected):
    found = order(
        model=GenerationDefaults(**{name: model}),
        defaults=Defaults() if config is None else Defaults(**{name: config}),
        **{name: request_},
    )
    assert getattr(found.sampling, name) == expected


def test_a_temperature_of_zero_is_said_and_not_left_out():
    model, config = GenerationDefaults(temperature=0.6), Defaults(temperature=0.7)
    assert order(model, config, temperature=0).sampling.temperature == 0.0
    assert order(GenerationDefaults(temperature=0.0), config).sampling.temperature == 0.0


def test_a_top_p_of_zero_keeps_the_likeliest_token():
    assert 0 < order(GenerationDefaults(top_p=0.5), top_p=0).sampling.top_p <= 1e-6


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
    assert order(defaults=Defaults(max_tokens=config), **fields).max_tokens == expected


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, []),
        ([], []),
        ("###", ["###"]),
        (["###"], ["###"]),
        (["\n\n", "###"], ["\n\n", "###"]),
        (["x"] * 16, ["x"] * 16),
    ],
)
def test_stop_has_several_forms(stop, expected):
    assert order(stop=stop).stop == expected


def test_too_many_stop_strings_are_refused():
    with pytest.raises(InvalidRequest) as refusal:
        order(stop=["x"] * 17)
    assert (refusal.value.param, refusal.value.message) == ("stop", "`stop`: at most 16 strings, not 17")


@pytest.mark.parametrize(
    ("role", "expected"),
    [("system", "system"), ("developer", "system"), ("user", "user"), ("assistant", "assistant")],
)
def test_roles_are_what_chat_templates_call_them(role, expected):
    assert said({"role": role, "content": "x"}) == [ipc.Message(role=expected, content="x")]


@pytest.mark.parametrize("role", ["tool", "function", "", "User", "user ", "system\n"])
def test_other_roles_are_refused_naming_those_there_are(role):
    with pytest.raises(InvalidRequest) as refusal:
        said(*TALK, {"role": role, "content": "x"})
    assert refusal.value.param == "messages[1].role"
    for name in ("system", "developer", "user", "assistant"):
        assert f"`{name}`" in refusal.value.message


def test_turns_stay_in_their_order():
    turns = [{"role": role, "content": str(at)} for at, role in enumerate(["system", "user", "assistant", "user"])]
    assert said(*turns) == [ipc.Message(**turn) for turn in turns]


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
def test_content_is_a_text_or_parts_that_make_one(content, expected):
    assert said({"role": "user", "content": content})[0].content == expected


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
    assert type(refusal.value) is InvalidRequest
    assert refusal.value.param == "messages[0].content[0].type"
    assert repr(kind) in refusal.value.message


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": None}])
def test_a_text_part_without_text_is_refused(part):
    with pytest.raises(InvalidRequest) as refusal:
        said({"role": "user", "content": [part]})
    assert refusal.value.param == "messages[0].content[0].text"


TOOL = {"type": "function", "function": {"name": "f"}}

ASKING = {
    "audio": [{"voice": "alloy", "format": "wav"}],
    "frequency_penalty": [0.5, -2, "0"],
    "function_call": ["auto", {"name": "f"}],
    "functions": [[{"name": "f"}]],
    "logit_bias": [{"1": 100}],
    "logprobs": [True],
    "modalities": [["text", "audio"], ["audio"], "text"],
    "moderation": [{"model": "omni-moderation-latest"}],
    "n": [2, 0, "1", -1],
    "parallel_tool_calls": ["yes"],
    "prediction": [{"type": "content", "content": "x"}],
    "presence_penalty": [0.5, -2],
    "reasoning_effort": ["high", "low", "minimal"],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "text"],
    "tool_choice": ["required", TOOL],
    "tools": [[TOOL]],
    "top_logprobs": [1, 20],
    "verbosity": ["high", "low"],
    "web_search_options": [{}, {"search_context_size": "low"}],
}


def test_there_is_an_asking_value_of_every_unsupported_field():
    assert sorted(ASKING) == sorted(HARMLESS)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ASKING.items() for value in values])
def test_what_is_not_done_is_refused_by_name(field, value):
    with pytest.raises(UnsupportedParameter) as refusal:
        order(**{field: value})
    assert refusal.value.param == field
    assert f"`{field}`" in refusal.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field, values in HARMLESS.items() for value in values),
        *((field, None) for field in HARMLESS),
        ("frequency_penalty", 0.0),
        ("presence_penalty", 0.0),
        ("response_format", {"type": "text"}),
        ("tools", []),
    ],
)
def test_what_asks_for_nothing_is_accepted(field, value):
    assert order(**{field: value}) == order()


def test_a_refused_field_is_told_before_a_wrong_message():
    with pytest.raises(UnsupportedParameter):
        order(tools=[TOOL], messages=[{"role": "tool", "content": "x"}])


def test_an_order_can_be_sent():
    sent = order(temperature=0, top_p=0, seed=2**63 - 1, stop="x", max_tokens=10**12)
    assert ipc.TO_WORKER.decode(msgspec.json.encode(sent)) == sent
