"""The OpenAPI description covers every route and every error of all APIs."""

import json
import re

import jsonschema
import pytest

from osaurusd.app import APIS
from osaurusd.config import Config, Input
from osaurusd.http.app import create_app
from osaurusd.http.errors import STATUS
from osaurusd.http.health import health_routes
from osaurusd.http.json import decode_json
from osaurusd.http.openapi import ADMIN_ERRORS, PREFIXES, document, openapi_routes
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models
from osaurusd.protocols.ollama.routes import ollama_routes
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.ui.routes import ui_routes
from osaurusd.wire.errors import ErrorCode
from tests.osaurusd.http.serve import serving

DOCUMENT = json.loads(document(APIS, Input()))
OPERATIONS = [(api, operation) for api in APIS for operation in api.operations]

# A WebSocket cannot be described. An upload is always rejected. The page is for browsers.
UNDESCRIBED = {
    *(("get", "/responses"), ("get", "/v1/responses"), ("post", "/api/push")),
    *(("get", "/"), ("get", "/ui/assets/{name}")),
}


def validator(api, type_):
    return jsonschema.Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{api.prefix}{type_.__name__}"})


def test_routes_and_paths_correspond():
    described = {
        (method, ("" if server["url"] == "/" else server["url"]) + path)
        for path, item in DOCUMENT["paths"].items()
        for method in item.keys() - {"servers"}
        for server in item.get("servers", DOCUMENT["servers"])
    }
    groups = [
        health_routes(),
        openai_routes(None, None, None),
        responses_routes(None, None, None),
        *anthropic_routes(None, None),
        ollama_routes(
            Generation(None, None), Embeddings(None, None), Models(None, None), Management(None, None, None, None)
        ),
        openapi_routes(APIS, Config),
        ui_routes(None, None, None),
    ]
    routes = {
        (route.method.lower(), re.sub(r"{(\w+):.*}", r"{\1}", path)) for group in groups for path, route in group.paths
    }
    assert described == (routes - UNDESCRIBED) | {("get", "/metrics")}


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.prefix)
def test_every_error_is_described_under_its_status(api):
    prefix = f"{api.prefix}Error"
    responses = {
        int(name.removeprefix(prefix)): response
        for name, response in DOCUMENT["components"]["responses"].items()
        if name.startswith(prefix)
    }
    described = {(code, status) for status, each in responses.items() for code in each["description"].split(", ")}
    assert described == {(f"`{code}`", STATUS[code]) for code in set(ErrorCode) - (ADMIN_ERRORS - api.errors)}
    for response in responses.values():
        content = response["content"]["application/json"]
        jsonschema.Draft202012Validator({**DOCUMENT, **content["schema"]}).validate(content["example"])
    for operation in api.operations:
        statuses = set(DOCUMENT["paths"][operation.path][operation.method]["responses"])
        assert statuses == {str(status) for status in responses} | {"200"}


@pytest.mark.parametrize(("api", "operation"), OPERATIONS, ids=lambda value: getattr(value, "id", ""))
def test_examples_are_valid_requests(api, operation):
    assert bool(operation.examples) == (operation.request is not None)
    for example in operation.examples.values():
        decode_json(json.dumps(example).encode(), operation.request)
        validator(api, operation.request).validate(example)


def test_ids_are_unique_and_names_have_no_module():
    ids = [operation.id for _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))
    assert b"osaurusd." not in document(APIS, Input())
    assert not any("." in name for name in DOCUMENT["components"]["schemas"])


async def test_description_is_served():
    app = create_app([openapi_routes(APIS, Config)], Config)
    async with serving(app) as server:
        for prefix in PREFIXES:
            response = await server.request("GET", f"{prefix}/openapi.json")
            assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
            assert response.json == DOCUMENT
