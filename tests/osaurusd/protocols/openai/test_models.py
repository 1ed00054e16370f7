"""`GET /models` and `GET /models/{model}`, and the routes of the group, with and without `/v1`."""

import json
from types import SimpleNamespace

import msgspec
import openai.types
import pytest

from osaurusd.buffered_bytes import BufferedBytes
from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.http.cors import require_json_body
from osaurusd.inference.service import Service
from osaurusd.pool.snapshot import WorkerSnapshot
from osaurusd.protocols.openai.models import ModelList
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk


@pytest.fixture
async def server(tmp_path):
    hub = tmp_path / "hub"
    disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    disk.write_hub(hub, "org/Half", {"config.json": disk.config()})
    disk.write_hub(hub, "org/Odd", disk.model(model_type="nonsense"))
    catalog = disk.make_catalog(tmp_path / "models", hub)
    pool = SimpleNamespace(snapshot=lambda: [])
    routes = openai_routes(Service(catalog, pool, Config, None, BufferedBytes(Config)), catalog, pool)
    async with serving(create_app([routes], Config)) as server:
        server.pool = pool
        yield server


CODEX_REQUIRES = {
    "slug",
    "display_name",
    "supported_reasoning_levels",
    "shell_type",
    "visibility",
    "supported_in_api",
    "priority",
    "base_instructions",
    "supports_reasoning_summaries",
    "support_verbosity",
    "truncation_policy",
    "supports_parallel_tool_calls",
    "experimental_supported_tools",
}


async def test_codex_gets_a_catalog_beside_the_list(server):
    response = await server.request("GET", "/v1/models?client_version=0.145.0")
    (model,) = response.json["models"]
    assert model.keys() >= CODEX_REQUIRES
    assert "gemma-2-2b-instruct" == model["slug"] == response.json["data"][0]["id"]
    assert "models" not in (await server.request("GET", "/v1/models")).json


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_only_available_models_are_listed(server, prefix):
    response = await server.request("GET", f"{prefix}/models")
    assert response.status == 200
    assert response.json["object"] == "list"
    (model,) = response.json["data"]
    openai.types.Model.model_validate(model, strict=True)
    assert isinstance(model.pop("created"), int)
    assert {"id": "gemma-2-2b-instruct", "object": "model", "owned_by": "osaurus"}.items() <= model.items()
    assert "input_modalities" not in model


def test_empty_list_is_a_list():
    assert json.loads(msgspec.json.encode(ModelList(data=[]))) == {"object": "list", "data": []}


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    "name",
    [
        "gemma-2-2b-instruct",
        "GEMMA-2-2b-Instruct",
        "mlx-community/gemma-2-2b-it-4bit",
        "mlx-community%2Fgemma-2-2b-it-4bit",
    ],
)
async def test_model_is_shown_by_any_of_its_names(server, prefix, name):
    response = await server.request("GET", f"{prefix}/models/{name}")
    assert (response.status, response.json["id"]) == (200, "gemma-2-2b-instruct")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("none", "model_not_found"),
        ("half", "model_not_found"),
        ("odd", "model_not_found"),
        ("org/none", "model_not_found"),
        ("llama-3.2-3b-instruct", "model_not_downloaded"),
    ],
)
async def test_unavailable_model_is_not_found(server, name, code):
    response = await server.request("GET", f"/models/{name}")
    assert (response.status, response.error["code"], response.error["param"]) == (404, code, "model")


@pytest.mark.parametrize(
    ("worker_state", "state"),
    [(None, "unloaded"), ("queued", "loading"), ("starting", "loading"), ("ready", "loaded"), ("failed", "failed")],
)
async def test_models_have_what_routers_need(server, worker_state, state):
    if worker_state is not None:
        worker = WorkerSnapshot(key="mlx-community/gemma-2-2b-it-4bit", name="g", state=WorkerState(worker_state))
        server.pool.snapshot = lambda: [worker]
    (listed,) = (await server.request("GET", "/v1/models")).json["data"]
    shown = (await server.request("GET", "/v1/models/gemma-2-2b-instruct")).json
    assert listed == shown
    assert (listed["state"], listed["task"]) == (state, "generate")
    assert listed["context_length"] is None or listed["context_length"] > 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/models", "GET, HEAD"),
        ("GET", "/chat/completions", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/models/x", "GET, HEAD"),
    ],
)
async def test_wrong_method_is_rejected_with_the_allowed_ones(server, method, path, allowed):
    response = await server.request(method, path)
    assert (response.status, response.headers["Allow"]) == (405, allowed)
    assert response.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1", "/v2/nothing", "/chat", "/v0/status", "/models%2F"])
async def test_unknown_path_is_not_found(server, path):
    response = await server.request("GET", path)
    assert (response.status, response.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/v1/models/", "///v1///models///", "/models/", "/v1/models/?x=1"],
)
async def test_double_and_trailing_slashes_are_ignored(server, path):
    response = await server.request("GET", path)
    assert (response.status, len(response.json["data"])) == (200, 1)


@pytest.mark.parametrize(
    "path",
    [
        "/models/gemma-2-2b-instruct/",
        "//models//mlx-community//gemma-2-2b-it-4bit",
        "/models/mlx-community%2Fgemma-2-2b-it-4bit/",
    ],
)
async def test_slashes_around_the_name_of_a_model_are_ignored(server, path):
    response = await server.request("GET", path)
    assert (response.status, response.json["id"]) == (200, "gemma-2-2b-instruct")


async def test_method_of_a_path_with_extra_slashes_is_checked(server):
    response = await server.request("DELETE", "//v1/models/")
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("path", "endpoint", "surplus"),
    [
        ("/v1/v1/models", "/v1/models", "/v1"),
        ("/v1//v1/models/", "/v1/models", "/v1"),
        ("/v1/v1/chat/completions", "/v1/chat/completions", "/v1"),
        ("/v1/chat/completions/chat/completions", "/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions", "/api"),
        ("/v2/models", "/models", "/v2"),
    ],
)
async def test_wrong_base_url_is_explained(server, path, endpoint, surplus):
    response = await server.request("GET", path)
    assert (response.status, response.error["code"]) == (404, "not_found")
    assert f"but {endpoint} does; remove {surplus} from" in response.error["message"]


@pytest.mark.parametrize(("path", "status"), [("/models", 405), ("/nothing", 404), ("/chat/completions", 415)])
async def test_path_and_method_are_checked_before_the_type_of_the_body(tmp_path, path, status):
    catalog = disk.make_catalog(tmp_path / "models", tmp_path / "hub")
    routes = openai_routes(Service(catalog, None, Config, None, BufferedBytes(Config)), catalog, None)
    async with serving(create_app([routes], Config, middlewares=[require_json_body])) as server:
        assert (await server.request("POST", path, "Content-Type: text/plain", body=b"x")).status == status
