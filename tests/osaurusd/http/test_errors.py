"""Errors have a status, retry headers and a body of limited size."""

import json

import pytest

from osaurusd import errors as domain
from osaurusd.errors import OsaurusError
from osaurusd.http import errors
from osaurusd.wire.errors import ErrorCode

TOO_MANY = {ErrorCode.QUEUE_FULL, ErrorCode.TOO_MANY_REQUESTS}
UNAVAILABLE = {
    ErrorCode.DRAINING,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.NOT_SERVING,
    ErrorCode.MODEL_UNLOADED,
    ErrorCode.INSUFFICIENT_MEMORY,
    ErrorCode.HOST_LOST,
    ErrorCode.TOO_MANY_CONNECTIONS,
}


def test_every_code_has_a_status():
    assert set(errors.STATUS) == set(ErrorCode)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_errors_that_pass_on_retry_are_retryable(code):
    headers = errors.error_headers(OsaurusError.by_code[code]("failed"))
    final = ("load_failed", "internal_error", "insufficient_memory", "time_limit_exceeded")
    assert headers.get("x-should-retry") == ("false" if code in final else None)
    assert ("Retry-After" in headers) == (code in {*TOO_MANY, *UNAVAILABLE} and code not in final)


def test_too_many_requests_and_an_unavailable_daemon_are_distinguished():
    """Status 429 means that the client should be slower; 503 that another host should serve the request."""
    codes = {status: {code for code, value in errors.STATUS.items() if value == status} for status in (429, 503)}
    assert codes == {429: TOO_MANY, 503: UNAVAILABLE}


def test_time_of_the_next_attempt_is_rounded_up():
    error = domain.WorkerCrashed("it crashed")
    error.retry_after = 3.2
    assert errors.error_headers(error) == {"Retry-After": "4"}
    error.retry_after = 0.0
    assert errors.error_headers(error) == {"Retry-After": "1"}


def test_default_response_has_all_four_keys():
    response = errors.error_response(domain.Busy("busy"))
    assert (response.status, response.content_type) == (409, "application/json")
    assert json.loads(response.body) == {
        "error": {"message": "busy", "type": "invalid_request_error", "param": None, "code": "busy"}
    }


def test_error_with_a_code_is_kept():
    error = domain.Busy("busy")
    assert errors.as_osaurus_error(error) is error


def test_unexpected_error_is_logged_and_hidden(logged):
    error = errors.as_osaurus_error(ValueError("a secret"))
    assert type(error) is domain.InternalError
    assert "a secret" not in error.message
    (line,) = logged()
    assert "ValueError: a secret" in line["exception"]


def test_long_messages_are_cut_and_lone_surrogates_escaped():
    body = errors.error_body(domain.InvalidRequest("m" * 10_000, param="\ud800" + "p" * 10_000))
    assert len(body.message) == errors.MAX_MESSAGE_CHARACTERS
    assert body.param.startswith("\\ud800p")
    assert len(body.param) < errors.MAX_PARAM_CHARACTERS + 10
