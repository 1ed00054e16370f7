"""What every protocol has in common, over one model that a fake worker runs."""

import gc
import itertools
import json
import weakref

import pytest
from aiohttp import ClientSession, web

from osaurusd.config import Config, Server
from osaurusd.errors import Draining
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.http.cors import Cors, require_json_body
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk
from tests.osaurusd.pool.helpers import until

from .helpers import MODEL, REPO, client_groups, running_backend

ORIGIN = "https://app.example"


def user(content):
    return [{"role": "user", "content": content}]


PROMPTS = {
    "/v1/chat/completions": lambda text: {"messages": user(text)},
    "/v1/completions": lambda text: {"prompt": text},
    "/v1/responses": lambda text: {"input": text},
    "/v1/messages": lambda text: {"messages": user(text), "max_tokens": 9},
    "/api/chat": lambda text: {"messages": user(text)},
    "/api/generate": lambda text: {"prompt": text, "raw": True},
}


def generation(path, text, **fields):
    """Return the body of a request to generate text."""
    return json.dumps({"model": MODEL, **PROMPTS[path](text), **fields}).encode()


class Served:
    """A server with the routes of all protocols.

    Attributes:
        folder: the folder of the model.
        admission: counts and rejects requests.
        requests: weak references to the requests so far.
    """

    def __init__(self, server, folder, admission, requests):
        self.server = server
        self.admission = admission
        self.requests = requests
        self._folder = folder

    @property
    def received(self):
        """The tags of the frames that the worker has received."""
        file = self._folder / "received"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
async def served(tmp_path):
    # An error has its status, however long a load takes.
    config = Config(server=Server(allowed_origins=[ORIGIN], first_byte_seconds=0))
    requests = []

    @web.middleware
    async def record(request, handler):
        requests.append(weakref.ref(request))
        return await handler(request)

    disk.write(tmp_path / "models" / "fail_load", disk.model())
    async with running_backend(tmp_path, REPO) as backend:
        cors = Cors(lambda: config.server)
        middlewares, hooks = [record, cors.check, require_json_body], [cors.add_headers]
        admission = Admission(lambda: config)
        groups = client_groups(backend)
        app = create_app(groups, lambda: config, admission=admission, middlewares=middlewares, response_hooks=hooks)
        async with serving(app, config) as server:
            yield Served(server, backend.folders[0], admission, requests)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PROMPTS)
async def test_client_that_disconnects_stops_its_generation(served, path, stream):
    body = generation(path, "stall", stream=stream)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    async with served.server.connection() as (_, writer):
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await until(lambda: "generate" in served.received)
    await until(lambda: "cancel" in served.received)


OUTCOMES = [
    ("to be", {}, 200),
    ("fail", {}, 400),
    ("x", {"model": "none"}, 404),
    ("x", {"model": "fail_load"}, 500),
    ("x", {"model": 1}, 400),
]


@pytest.mark.parametrize("path", PROMPTS)
async def test_request_is_freed_without_garbage_collection(served, path):
    gc.disable()
    try:
        for stream, (text, fields, status) in itertools.product((True, False), OUTCOMES):
            body = generation(path, text, stream=stream, **fields)
            response = await served.server.request("POST", path, "Content-Type: application/json", body=body)
            assert response.status == (200 if stream and text == "fail" else status), (text, fields, stream)
            (request,) = served.requests
            await until(lambda request=request: request() is None)
            served.requests.clear()
    finally:
        gc.enable()


async def test_client_that_closes_a_websocket_stops_its_generation(served):
    async with ClientSession() as session, session.ws_connect(f"{served.server.url}/v1/responses") as socket:
        await socket.send_json({"type": "response.create", "model": MODEL, "input": "stall"})
        await until(lambda: "generate" in served.received)
    await until(lambda: "cancel" in served.received)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/responses", {"GET", "HEAD", "POST"}),
        ("/v1/responses/resp_1", {"DELETE", "GET", "HEAD"}),
        ("/conversations/conv_1", {"DELETE", "GET", "HEAD", "POST"}),
        ("/v1/conversations/conv_1/items/msg_1", {"DELETE", "GET", "HEAD"}),
        ("/api/delete", {"DELETE"}),
    ],
)
async def test_allowed_page_may_use_every_method_of_a_route(served, path, methods):
    preflight = [f"Origin: {ORIGIN}", "Access-Control-Request-Method: DELETE"]
    response = await served.server.request("OPTIONS", path, *preflight)

    assert 204 == response.status
    assert methods == set(response.headers["Access-Control-Allow-Methods"].split(", "))
    assert ORIGIN == response.headers["Access-Control-Allow-Origin"]
    if "DELETE" in methods:
        deleted = await served.server.request("DELETE", path, f"Origin: {ORIGIN}", body=b"{}")
        assert deleted.status in (403, 404)
        assert ORIGIN == deleted.headers["Access-Control-Allow-Origin"]


async def test_page_of_another_origin_cannot_open_a_websocket(served):
    headers = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    key = "Sec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA=="
    for origin, status in (("https://evil.example", 403), (ORIGIN, 101)):
        lines = ["GET /v1/responses HTTP/1.1", "Host: localhost", f"Origin: {origin}", *headers, key, "", ""]
        async with served.server.connection() as (reader, writer):
            writer.write("\r\n".join(lines).encode())
            assert str(status) in (await reader.readline()).decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": user("hi"), "max_tokens": 9.0, "n": 1.0, "seed": 1.0, "top_k": 4.0}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 9.0, "logprobs": 0.0}),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 16.0, "top_logprobs": 0.0}),
        ("/v1/messages", {"messages": user("hi"), "max_tokens": 9.0, "top_k": 4.0}),
        ("/api/chat", {"messages": user("hi"), "stream": False, "options": {"num_predict": 9.0, "top_k": 4.0}}),
    ],
)
async def test_whole_floats_are_integers(served, path, body):
    content = json.dumps({"model": MODEL, **body}).encode()
    response = await served.server.request("POST", path, "Content-Type: application/json", body=content)
    assert 200 == response.status, response.body


REQUESTS = {
    **{path: fields("stall") for path, fields in PROMPTS.items()},
    "/v1/messages/count_tokens": {"messages": user("x")},
    "/v1/embeddings": {"input": "x"},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
    "/v1/decisions": {"input": "x", "questions": [{"name": "q", "type": "boolean", "text": "?"}]},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/responses/compact": {"input": "x"},
    "/api/embed": {"input": "x"},
    "/api/embeddings": {"prompt": "x"},
}


def error_code(path, body):
    """Return what identifies the error in the format of the API."""
    if path.startswith("/v1/messages"):
        assert ("error", "overloaded_error") == (body["type"], body["error"]["type"])
        return body["error"]["message"]
    return body["error"] if path.startswith("/api") else body["error"]["code"]


async def test_draining_daemon_rejects_requests_in_the_format_of_the_api(served):
    served.admission.close(lambda: Draining("draining"))
    for path, fields in REQUESTS.items():
        body = json.dumps({"model": MODEL, **fields}).encode()
        response = await served.server.request("POST", path, "Content-Type: application/json", body=body)

        assert (503, "5") == (response.status, response.headers["Retry-After"]), path
        assert "draining" == error_code(path, response.json), path
    assert [] == served.received


async def test_draining_daemon_still_lists_its_models(served):
    served.admission.close(lambda: Draining("draining"))

    for path in ("/v1/models", "/v1/models/" + MODEL, "/api/tags", "/api/ps", "/api/version"):
        assert 200 == (await served.server.request("GET", path)).status, path


async def test_draining_daemon_rejects_a_websocket(served):
    served.admission.close(lambda: Draining("draining"))
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    response = await served.server.request("GET", "/v1/responses", *upgrade, f"Sec-WebSocket-Key: {'eHh4' * 5}eA==")

    assert (503, "draining") == (response.status, response.error["code"])


@pytest.mark.parametrize("path", PROMPTS)
async def test_client_chosen_id_is_in_the_headers_of_responses_streams_and_errors(served, path):
    for fields, status in (({}, 200), ({"stream": True}, 200), ({"model": "none"}, 404)):
        content = generation(path, "to be", **fields)
        headers = ["Content-Type: application/json", "X-Request-Id: trace-7"]
        response = await served.server.request("POST", path, *headers, body=content)
        assert (status, "trace-7") == (response.status, response.headers["X-Request-Id"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
async def test_prompt_cache_key_is_accepted(served, path):
    body = generation(path, "to be", prompt_cache_key="user-1")

    assert 200 == (await served.server.request("POST", path, "Content-Type: application/json", body=body)).status


async def test_websocket_keeps_the_id_of_its_request(served):
    headers = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "X-Request-Id: trace-7"]
    lines = ["GET /v1/responses HTTP/1.1", "Host: localhost", *headers, f"Sec-WebSocket-Key: {'eHh4' * 5}eA==", "", ""]
    async with served.server.connection() as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 ")
    assert "x-request-id: trace-7" in head.lower()
