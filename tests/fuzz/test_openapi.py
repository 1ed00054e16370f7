"""Requests that Schemathesis generates from `/openapi.json` get the responses that it describes."""

import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurusd.app import APIS
from osaurusd.http.openapi import Operation
from tests.fuzz.target import TIMEOUT_SECONDS, Target

EXAMPLES = 3
OTHER_EXAMPLES = 2
LONG_EXAMPLES = 500

CHAT_PATHS = ("/chat/completions", "/completions")
CONSTANT_PATHS = (
    *("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/models"),
    *("/api/version", "/api/tags", "/api/ps"),
)
MODES = ("positive", "negative")
OPERATIONS = [operation for api in APIS for operation in api.operations]

# Without a body or a query, no request is invalid: any text can be an id.
CASES = [
    pytest.param(operation, mode, id=f"{operation.id}-{mode}")
    for operation in OPERATIONS
    for mode in MODES
    if mode is MODES[0] or operation.request is not None or operation.query
]

# Long outputs would only take time.
LIMITS: dict[str, Any] = {
    "max_tokens": 1,
    "max_completion_tokens": 1,
    "max_output_tokens": 1,
    "options": {"num_predict": 1},
}


def fetch_openapi(target: Target) -> Any:
    connection = HTTPConnection(urlsplit(target.daemon.url).netloc, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/openapi.json")
        return json.load(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def operations(target: Target) -> dict[str, Any]:
    """The operations of the description by their ids."""
    import schemathesis  # noqa: PLC0415  takes a second, which every process that collects the tests would spend
    from schemathesis.config import SchemathesisConfig  # noqa: PLC0415

    document = fetch_openapi(target)
    # The document lists the servers with and without /v1; one of them suffices.
    document["servers"] = [{"url": "/"}]
    # This stream never ends.
    stream = {"include-operation-id": "watchActivity", "max-stream-events": 1}
    schema = schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict({"operations": [stream]}))
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]
    return {operation.definition.raw["operationId"]: operation for operation in found}


def send_examples(target: Target, operation: Any, mode: str, examples: int, *, derandomize: bool) -> None:
    from schemathesis import GenerationMode, checks  # noqa: PLC0415  as above
    from schemathesis.specs.openapi import checks as openapi_checks  # noqa: PLC0415

    expectations = [
        checks.not_a_server_error,
        openapi_checks.status_code_conformance,
        openapi_checks.content_type_conformance,
        openapi_checks.response_schema_conformance,
    ]

    @settings(max_examples=examples, derandomize=derandomize)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(GenerationMode(mode)))
        if isinstance(case.body, dict):
            # The model must not be unloaded, since its process must stay the same.
            body = {name: value for name, value in case.body.items() if name != "keep_alive"}
            case.body = {**body, **LIMITS}
        response = case.call(base_url=target.daemon.url, timeout=TIMEOUT_SECONDS)
        target.sent += 1
        case.validate_response(response, checks=expectations)

    send()


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_responses_conform_to_openapi(
    target: Target, operations: dict[str, Any], operation: Operation, mode: str
) -> None:
    examples = EXAMPLES if operation.path in CHAT_PATHS else OTHER_EXAMPLES
    if operation.path in CONSTANT_PATHS:
        examples = 1
    send_examples(target, operations[operation.id], mode, examples, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_many_responses_conform_to_openapi(
    target: Target, operations: dict[str, Any], operation: Operation, mode: str
) -> None:
    if operation.path in CONSTANT_PATHS:
        pytest.skip("the request is always the same")
    send_examples(target, operations[operation.id], mode, LONG_EXAMPLES, derandomize=False)
    print(f"{operation.id} {mode}: {target.sent} requests so far")
