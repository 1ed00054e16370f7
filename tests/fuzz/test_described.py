"""Schemathesis makes requests of `/openapi.json`, right and wrong ones, and holds the answers against it."""

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

from tests.fuzz.target import HANG_SECONDS, Target

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = 10
MANY = 500

PATHS = ["/health", "/models", "/models/{model}", "/chat/completions", "/completions", "/metrics", "/openapi.json"]


def described(target: Target) -> Any:
    connection = HTTPConnection(urlsplit(target.daemon.url).netloc, timeout=HANG_SECONDS)
    try:
        connection.request("GET", "/openapi.json")
        document = json.load(connection.getresponse())
    finally:
        connection.close()
    return document


def drive(target: Target, path: str, mode: schemathesis.GenerationMode, examples: int, *, derandomize: bool) -> None:
    document = described(target)
    assert set(PATHS) == set(document["paths"])
    # The same routes twice; one will do.
    document["servers"] = [{"url": "/"}]
    operation = next(
        one.ok() for one in schemathesis.openapi.from_dict(document).get_all_operations() if one.ok().path == path
    )

    @settings(max_examples=examples, derandomize=derandomize)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(mode))
        if isinstance(case.body, dict):
            # An answer as long as a wrong request may ask for would only take time.
            case.body = {**case.body, "max_tokens": 1, "max_completion_tokens": 1}
        response = case.call(base_url=target.daemon.url, timeout=HANG_SECONDS)
        target.tried += 1
        case.validate_response(response, checks=CHECKS)

    send()


MODES = list(schemathesis.GenerationMode)


def cases() -> list[Any]:
    """Where there is no body, nothing can be wrong: any text may be a name."""
    takes = ("/chat/completions", "/completions")
    return [(path, mode) for path in PATHS for mode in MODES if mode is MODES[0] or path in takes]


@pytest.mark.parametrize(("path", "mode"), cases())
def test_answers_are_as_described(target: Target, path: str, mode: schemathesis.GenerationMode) -> None:
    drive(target, path, mode, FEW if "{" in path or "completions" in path else 1, derandomize=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("path", "mode"), [case for case in cases() if case[0] not in ("/health", "/metrics")])
def test_very_many_answers_are_as_described(target: Target, path: str, mode: schemathesis.GenerationMode) -> None:
    drive(target, path, mode, MANY, derandomize=False)
    print(f"{path} {mode.value}: {target.tried} requests tried so far")
