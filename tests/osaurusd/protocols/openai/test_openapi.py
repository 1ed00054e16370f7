"""The OpenAPI description of OpenAI's API covers every limit, and the responses conform to it."""

import json

import jsonschema
import msgspec
import pytest

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.http.json import decode_json
from osaurusd.http.openapi import document
from osaurusd.inference import limits
from osaurusd.protocols.openai.chat_types import ChatRequest
from osaurusd.protocols.openai.completion_types import CompletionRequest
from osaurusd.protocols.openai.openapi import API, ENUMS, OPERATIONS

from .builders import MESSAGES, check_chat, check_completion

DOCUMENT = json.loads(document((API,), Input()))
SCHEMAS = DOCUMENT["components"]["schemas"]


def validator(component):
    return jsonschema.Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{component}"})


def check(type_, fields):
    """Decode, parse and check a body as the handlers do."""
    decode_json(msgspec.json.encode(fields), type_)
    (check_chat if type_ is ChatRequest else check_completion)(**fields)


def test_every_limit_is_described_with_the_configured_value():
    values = {key: 50 + index for index, key in enumerate(Input.__struct_fields__)}
    text = document((API,), Input(**values)).decode()
    for limit in limits.LIMITS:
        assert f"At most {values[limit.key]} {limit.unit} (`input.{limit.key}`)." in text


@pytest.mark.parametrize(
    ("component", "field", "form", "keyword", "value"),
    [
        ("ChatRequest", "messages", None, "maxItems", 4096),
        ("ChatRequest", "n", "integer", "maximum", 8),
        ("ChatRequest", "stop", "array", "maxItems", 16),
        ("ChatRequest", "stop", "string", "maxLength", 1024),
        ("ChatRequest", "logit_bias", "object", "maxProperties", 1024),
        ("ChatRequest", "top_logprobs", "integer", "maximum", 20),
        ("ChatRequest", "tools", "array", "maxItems", 128),
        ("Message", "content", "array", "maxItems", 2048),
        ("Message", "tool_call_id", "string", "maxLength", 256),
        ("ToolCallParam", "id", "string", "maxLength", 256),
        ("FunctionCallParam", "name", None, "maxLength", 256),
        ("CompletionRequest", "logprobs", "integer", "maximum", 20),
        ("CompletionRequest", "model", "string", "maxLength", 256),
    ],
)
def test_limit_is_a_keyword_of_the_field(component, field, form, keyword, value):
    schema = SCHEMAS[component]["properties"][field]
    forms = [each for each in schema.get("anyOf", [schema]) if form is None or each.get("type") == form]
    assert [each[keyword] for each in forms] == [value]


def test_content_and_prompts_have_no_limit_of_another_form():
    content = SCHEMAS["Message"]["properties"]["content"]["anyOf"]
    assert all("maxLength" not in form for form in content)
    prompt = SCHEMAS["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    assert all("maxItems" not in form for form in prompt)


def test_examples_are_valid_requests():
    for operation in OPERATIONS:
        assert bool(operation.examples) == (operation.request is not None)
        for example in operation.examples.values():
            check(operation.request, example)
            validator(operation.request.__name__).validate(example)


@pytest.mark.parametrize(
    ("type_", "fields"),
    [
        (ChatRequest, {"messages": []}),
        (ChatRequest, {"messages": MESSAGES, "n": 9}),
        (ChatRequest, {"messages": MESSAGES, "stop": ["a"] * 17}),
        (ChatRequest, {"messages": MESSAGES, "stop": ["a" * 1025]}),
        (ChatRequest, {"messages": MESSAGES, "logit_bias": {str(token): 1 for token in range(1025)}}),
        (ChatRequest, {"messages": [{"role": "user", "content": "", "name": "x" * 257}]}),
        (ChatRequest, {"messages": MESSAGES, "top_logprobs": 21, "logprobs": True}),
        (ChatRequest, {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "a b"}}]}),
        (CompletionRequest, {"logprobs": 21}),
        (CompletionRequest, {"temperature": True}),
        (CompletionRequest, {"seed": 2**63}),
    ],
)
def test_rejected_request_does_not_conform(type_, fields):
    with pytest.raises(InvalidRequest):
        check(type_, fields)
    assert not validator(type_.__name__).is_valid(fields)


@pytest.mark.parametrize(
    ("component", "field", "value"), [(*place, value) for place, values in ENUMS.items() for value in values]
)
def test_every_allowed_value_is_described(component, field, value):
    schema = SCHEMAS[component]["properties"][field]
    assert any(value in form.get("enum", ()) for form in schema.get("anyOf", [schema]))


async def test_responses_and_events_conform(served_model):
    chat = {"messages": MESSAGES}
    validator("ChatCompletion").validate((await served_model.post("/chat/completions", **chat)).json)
    validator("Completion").validate((await served_model.post("/completions", prompt="a")).json)
    streams = [("/chat/completions", "ChatCompletionChunk", chat), ("/completions", "CompletionChunk", {"prompt": "a"})]
    for path, component, fields in streams:
        *events, end = await served_model.stream(path, stream_options={"include_usage": True}, **fields)
        assert end == "[DONE]"
        for event in events:
            validator(component).validate(event)
    validator("ModelList").validate((await served_model.server.request("GET", "/models")).json)
    validator("ErrorEnvelope").validate((await served_model.post("/completions", n=0)).json)
