"""The description says what the routes do: all of them, all their limits, and every error."""

import json

import jsonschema
import msgspec
import pytest

from osaurusd.config import Input
from osaurusd.errors import InvalidRequest
from osaurusd.http.errors import STATUS
from osaurusd.http.json import decode_json
from osaurusd.protocols.openai.description import refine
from osaurusd.protocols.openai.description.document import ELSEWHERE, document
from osaurusd.protocols.openai.description.operations import OPERATIONS
from osaurusd.protocols.openai.limits import UNITS, Limits
from osaurusd.protocols.openai.routes import PREFIXES, ROUTES
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from osaurusd.wire.errors import ErrorCode
from tests.osaurusd.protocols.openai.translate.asking import TALK

DESCRIBED = json.loads(document(Input()))


def validator(component):
    return jsonschema.Draft202012Validator({**DESCRIBED, "$ref": f"#/components/schemas/{component}"})


def read(kind, fields):
    """As a handler does."""
    asked = decode_json(msgspec.json.encode(fields), kind)
    check = Limits(Input())
    (check.chat if kind is ChatRequest else check.completion)(asked)


def routes():
    return {(route.method.lower(), path.replace(":.+", "")) for path, route in ROUTES.paths} | {("get", "/metrics")}


def test_every_route_is_in_it_and_every_path_of_it_is_a_route():
    described = {
        (method, ("" if server["url"] == "/" else server["url"]) + path)
        for path, item in DESCRIBED["paths"].items()
        for method in item.keys() - {"servers"}
        for server in item.get("servers", DESCRIBED["servers"])
    }
    assert {"", "/v1"} == set(PREFIXES)
    assert routes() == described


def test_every_error_that_clients_can_meet_is_in_it_under_its_status():
    found = {
        (code, int(name.removeprefix("Error")))
        for name, answer in DESCRIBED["components"]["responses"].items()
        for code in answer["content"]["application/json"]["schema"]["allOf"][1]["properties"]["error"]["properties"][
            "code"
        ]["enum"]
    }
    assert {(code.value, STATUS[code]) for code in set(ErrorCode) - ELSEWHERE} == found
    for item in DESCRIBED["paths"].values():
        for operation in (item[method] for method in item.keys() - {"servers"}):
            assert {str(status) for _, status in found} | {"200"} == set(operation["responses"])


def test_every_limit_is_in_it_with_its_value_and_follows_the_configuration():
    odd = {key: 400 + at if "depth" in key else 50 + at for at, key in enumerate(Input.__struct_fields__)}
    odd["max_schema_depth"] = 399
    text = document(Input(**odd)).decode()
    for key, unit in UNITS.items():
        assert f"At most {odd[key]} {unit} (`input.{key}`)." in text
    schemas = json.loads(text)["components"]["schemas"]
    for limit in (one for one in refine.LIMITS if one.keyword and one.kind != refine.ITEMS and "." not in one.type):
        forms = schemas[limit.type]["properties"][limit.field]
        assert odd[limit.key] in [form.get(limit.keyword) for form in forms.get("anyOf", [forms])]


def test_each_example_is_a_request():
    for operation in (one for one in OPERATIONS if one.request is not None):
        assert operation.examples
        for example in operation.examples.values():
            read(operation.request, example)
            validator(operation.request.__name__).validate(example)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatRequest, {"messages": []}),
        (ChatRequest, {"messages": TALK, "n": 9}),
        (ChatRequest, {"messages": TALK, "stop": ["a"] * 17}),
        (ChatRequest, {"messages": TALK, "stop": ["a" * 1025]}),
        (ChatRequest, {"messages": TALK, "logit_bias": {str(at): 1 for at in range(1025)}}),
        (ChatRequest, {"messages": [{"role": "user", "content": "", "name": "x" * 257}]}),
        (ChatRequest, {"messages": TALK, "top_logprobs": 21, "logprobs": True}),
        (ChatRequest, {"messages": TALK, "tools": [{"type": "function", "function": {"name": "a b"}}]}),
        (CompletionRequest, {"logprobs": 21}),
        (CompletionRequest, {"temperature": True}),
        (CompletionRequest, {"seed": 2**63}),
    ],
)
def test_what_is_refused_does_not_fit_it(kind, fields):
    with pytest.raises(InvalidRequest):
        read(kind, fields)
    assert not validator(kind.__name__).is_valid(fields)


@pytest.mark.parametrize(
    ("component", "field", "word"), [(*place, word) for place, words in refine.WORDS.items() for word in words]
)
def test_every_word_that_is_allowed_is_in_it(component, field, word):
    if "." not in component:
        schema = DESCRIBED["components"]["schemas"][component]["properties"][field]
        assert any(word in form.get("enum", ()) for form in schema.get("anyOf", [schema]))


def test_names_of_our_modules_are_not_in_it():
    assert b"osaurusd." not in document(Input())
    assert not any("." in name for name in DESCRIBED["components"]["schemas"])


async def test_it_is_served_like_the_rest(serving_model):
    for prefix in PREFIXES:
        answer = await serving_model.server.ask("GET", f"{prefix}/openapi.json")
        assert (200, "application/json") == (answer.status, answer.headers["Content-Type"])
        assert DESCRIBED == answer.json


async def test_answers_and_events_fit_it(serving_model):
    talk = {"messages": TALK}
    chat = await serving_model.post("/chat/completions", **talk)
    validator("Completion").validate(chat.json)
    text = await serving_model.post("/completions", prompt="a")
    validator("TextCompletion").validate(text.json)
    for path, component, fields in (("/chat/completions", "ChatChunk", talk), ("/completions", "TextChunk", {})):
        *events, end = await serving_model.stream(path, stream_options={"include_usage": True}, **fields)
        assert "[DONE]" == end
        for event in events:
            validator(component).validate(event)
    listed = await serving_model.server.ask("GET", "/models")
    validator("ModelList").validate(listed.json)
    refused = await serving_model.post("/completions", n=0)
    validator("ErrorEnvelope").validate(refused.json)
