"""`GET /models` and `GET /models/{id}`, alike with and without `/v1`."""

import pytest

from osaurusd import app_keys as keys
from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.protocols.openai.routes import ROUTES
from osaurusd.settings import Settings
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk


@pytest.fixture
async def server(tmp_path):
    hub = tmp_path / "hub"
    disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    disk.write_hub(hub, "org/Half", {"config.json": disk.config()})
    disk.write_hub(hub, "org/Odd", disk.model(model_type="nonsense"))
    app = create_app([ROUTES], Config)
    app[keys.SETTINGS] = Settings(Config(), Config)
    app[keys.CATALOG] = disk.make_catalog(tmp_path / "models", hub)
    async with serving(app) as server:
        yield server


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_only_models_that_can_be_served_are_listed(server, prefix):
    answer = await server.ask("GET", f"{prefix}/models")
    assert answer.status == 200
    assert answer.json["object"] == "list"
    (model,) = answer.json["data"]
    assert isinstance(model.pop("created"), int)
    assert model == {"id": "gemma-2-2b-instruct", "object": "model", "owned_by": "osaurus"}


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
async def test_one_model_is_shown_by_any_of_its_names(server, prefix, name):
    answer = await server.ask("GET", f"{prefix}/models/{name}")
    assert (answer.status, answer.json["id"]) == (200, "gemma-2-2b-instruct")


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
async def test_a_model_that_cannot_be_served_is_not_shown(server, name, code):
    answer = await server.ask("GET", f"/models/{name}")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, code, "model")


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_health_is_ok(server, prefix):
    answer = await server.ask("GET", f"{prefix}/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/models", "GET, HEAD"),
        ("GET", "/chat/completions", "POST"),
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/models/x", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told(server, method, path, allowed):
    answer = await server.ask(method, path)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1", "/v2/models", "/v1/v1/models", "/chat", "/models/", "/v0/status"])
async def test_other_paths_are_not_there(server, path):
    answer = await server.ask("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
