"""Requests that Schemathesis generates from `/openapi.json` get the responses that it describes."""

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.target import TIMEOUT_SECONDS, Target

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 10
LONG_EXAMPLES = 500

PATHS = ["/health", "/models", "/models/{model}", "/chat/completions", "/completions", "/metrics", "/openapi.json"]
POST_PATHS = ("/chat/completions", "/completions", "/decisions")
MODES = list(schemathesis.GenerationMode)

# Without a body, no request is invalid: any text can be a model name.
CASES = [(path, mode) for path in PATHS for mode in MODES if mode is MODES[0] or path in POST_PATHS]


def fetch_openapi(target: Target) -> Any:
    connection = HTTPConnection(urlsplit(target.daemon.url).netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/openapi.json")
        return json.load(connection.getresponse())
    finally:
        connection.close()


def find_operation(target: Target, path: str) -> Any:
    document = fetch_openapi(target)
    assert set(PATHS) == set(document["paths"])
    # The document lists the servers with and without /v1; one of them suffices.
    document["servers"] = [{"url": "/"}]
    operations: list[Any] = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    return next(operation for operation in operations if operation.path == path)


def send_examples(
    target: Target, path: str, mode: schemathesis.GenerationMode, examples: int, *, derandomize: bool
) -> None:
    operation = find_operation(target, path)

    @settings(max_examples=examples, derandomize=derandomize)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(mode))
        if isinstance(case.body, dict):
            # Long outputs would only take time.
            case.body = {**case.body, "max_tokens": 1, "max_completion_tokens": 1}
        response = case.call(base_url=target.daemon.url, timeout=TIMEOUT_SECONDS)
        target.sent += 1
        case.validate_response(response, checks=CHECKS)

    send()


@pytest.mark.parametrize(("path", "mode"), CASES)
def test_responses_conform_to_openapi(target: Target, path: str, mode: schemathesis.GenerationMode) -> None:
    takes_input = "{" in path or path in POST_PATHS
    send_examples(target, path, mode, EXAMPLES if takes_input else 1, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("path", "mode"), [case for case in CASES if case[0] not in ("/health", "/metrics")])
def test_many_responses_conform_to_openapi(target: Target, path: str, mode: schemathesis.GenerationMode) -> None:
    send_examples(target, path, mode, LONG_EXAMPLES, derandomize=False)
    print(f"{path} {mode.value}: {target.sent} requests so far")
