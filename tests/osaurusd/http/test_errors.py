"""From exceptions to answers."""

import json

import pytest
from aiohttp import web

from osaurusd import errors as domain
from osaurusd.config import Config, Server
from osaurusd.errors import OsaurusError
from osaurusd.http import body, errors
from osaurusd.http.app import make_app
from osaurusd.wire.errors import ErrorCode

from .serve import serving

STATUS = {
    "invalid_json": 400,
    "invalid_request": 400,
    "unsupported_parameter": 400,
    "image_input_unsupported": 400,
    "context_length_exceeded": 400,
    "request_exceeds_memory": 400,
    "import_failed": 400,
    "pull_failed": 502,
    "disk_full": 507,
    "invalid_api_key": 401,
    "malformed_request": 400,
    "request_timeout": 408,
    "uri_too_long": 414,
    "unsupported_encoding": 415,
    "expectation_failed": 417,
    "too_many_requests": 429,
    "headers_too_large": 431,
    "not_implemented": 501,
    "too_many_connections": 503,
    "time_limit_exceeded": 504,
    "forbidden": 403,
    "model_not_found": 404,
    "model_not_downloaded": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_client": 408,
    "busy": 409,
    "name_taken": 409,
    "version_mismatch": 412,
    "request_too_large": 413,
    "unsupported_media_type": 415,
    "queue_full": 429,
    "load_failed": 500,
    "internal_error": 500,
    "config_error": 500,
    "home_in_use": 500,
    "listen_failed": 500,
    "worker_crashed": 502,
    "model_unloaded": 503,
    "shutting_down": 503,
    "not_serving": 503,
    "insufficient_memory": 503,
}


def test_every_code_has_its_status():
    assert {str(code): status for code, status in errors.STATUS.items()} == STATUS
    assert set(errors.STATUS) == set(ErrorCode)


@pytest.fixture
async def server(logged):
    app = make_app(Config(server=Server(max_body_bytes=10)))

    async def fail(request):
        raise OsaurusError.by_code[ErrorCode(request.match_info["code"])]("it went wrong", param="messages[0]")

    async def crash(request):
        raise KeyError("a secret")

    async def refuse(request):
        raise web.HTTPConflict(text="not now")

    async def read(request):
        return body.reply(await body.read(request, dict))

    app.router.add_get("/fail/{code}", fail)
    app.router.add_get("/crash", crash)
    app.router.add_get("/refuse", refuse)
    app.router.add_post("/read", read)
    app.router.add_put("/read", read)
    async with serving(app) as server:
        yield server


@pytest.mark.parametrize(("code", "status"), STATUS.items())
async def test_an_error_is_its_status_and_the_envelope(server, code, status):
    answer = await server.ask("GET", f"/fail/{code}")
    assert answer.status == status
    assert answer.error == {
        "message": "it went wrong",
        "type": {429: "rate_limit_error"}.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": "messages[0]",
        "code": code,
    }


@pytest.mark.parametrize("code", STATUS)
async def test_clients_are_told_not_to_try_again_where_it_is_no_use(server, code):
    answer = await server.ask("GET", f"/fail/{code}")
    final = ("load_failed", "internal_error", "insufficient_memory", "time_limit_exceeded")
    expected = "false" if code in final else None
    assert answer.headers.get("x-should-retry") == expected


@pytest.mark.parametrize("code", STATUS)
async def test_clients_are_told_when_to_try_again_where_it_is_worth_a_try(server, code):
    answer = await server.ask("GET", f"/fail/{code}")
    assert answer.headers.get("Retry-After") == (
        "1" if code in ("queue_full", "too_many_requests", "too_many_connections") else None
    )


async def test_an_unknown_path_is_a_404_that_names_it(server):
    answer = await server.ask("GET", "/none/at%20all?x=1")
    assert answer.status == 404
    assert (answer.error["code"], answer.error["message"]) == ("not_found", "there is no /none/at all here")


@pytest.mark.parametrize("path", ["/", "//", "/%ff%00", "/read/", "/fail/", "/..", "/%2e%2e/read"])
async def test_odd_paths_are_404s(server, path):
    answer = await server.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")


async def test_a_wrong_method_is_a_405_that_says_which_are_right(server):
    answer = await server.ask("GET", "/read")
    assert answer.status == 405
    assert answer.headers["Allow"] == "POST, PUT"
    assert answer.error["code"] == "method_not_allowed"
    assert answer.error["message"] == "/read does not take GET; it takes POST, PUT"


async def test_a_large_body_is_a_413_that_names_the_setting(server):
    answer = await server.ask("POST", "/read", "Content-Type: application/json", body=b'{"a":12345}')
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"
    assert "`server.max_body_bytes`" in answer.error["message"]


async def test_other_refusals_of_the_framework_have_the_envelope_too(server):
    answer = await server.ask("GET", "/refuse")
    assert answer.status == 400
    assert (answer.error["code"], answer.error["message"]) == ("invalid_request", "not now")


async def test_an_unexpected_error_is_hidden_and_logged_whole(server, logged):
    answer = await server.ask("GET", "/crash")
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert b"a secret" not in answer.body
    (line,) = [line for line in logged() if line["event"] == "unexpected error"]
    assert line["level"] == "error"
    assert "KeyError: 'a secret'" in line["exception"]
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_an_expected_error_is_not_logged_as_unexpected(server, logged):
    await server.ask("GET", "/fail/load_failed")
    assert [line["event"] for line in logged()] == ["request"]


async def test_the_answer_to_head_has_no_body(server):
    answer = await server.ask("HEAD", "/none")
    assert (answer.status, answer.body) == (404, b"")


def test_an_error_that_names_no_field_has_null_for_it():
    shown = json.loads(errors.envelope(domain.Busy("busy")))
    assert shown == {"error": {"message": "busy", "type": "invalid_request_error", "param": None, "code": "busy"}}


def test_an_error_with_a_code_is_known_as_itself():
    error = domain.Busy("busy")
    assert errors.known(error) is error


def test_any_other_error_is_an_internal_one(logged):
    shown = errors.known(ValueError("a secret"))
    assert type(shown) is domain.InternalError
    assert "a secret" not in shown.message
    (line,) = logged()
    assert "ValueError: a secret" in line["exception"]


def test_what_an_error_quotes_is_cut():
    body = errors.error_body(domain.InvalidRequest("m" * 10_000, param="p" * 10_000))
    assert (len(body.message), len(body.param)) == (errors.MAX_MESSAGE, errors.MAX_PARAM)
