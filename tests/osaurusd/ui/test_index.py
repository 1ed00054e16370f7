"""`GET /` is a page for a browser, JSON for a program that accepts it, and Ollama's text for others."""

import pytest

from osaurusd import __version__
from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.ui.index import ui_routes
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk

BROWSER = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
async def server(tmp_path):
    hub = tmp_path / "hub"
    disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    catalog = disk.make_catalog(tmp_path / "models", hub)
    async with serving(create_app([ui_routes(catalog)], Config)) as server:
        yield server


async def test_browser_gets_a_page_that_loads_nothing(server):
    response = await server.request("GET", "/", BROWSER)
    text = response.body.decode()

    assert (response.status, response.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert f"osaurusd {__version__}" in text
    assert "gemma-2-2b-instruct" in text
    assert "/v1</code>" in text
    assert "and Ollama's at <code>http://" in text
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert not {"<script", "<img", "src="} & set(text.split())


async def test_program_that_accepts_json_gets_json(server):
    response = await server.request("GET", "/", "Accept: application/json")

    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert response.json == {
        "name": "osaurusd",
        "version": __version__,
        "openapi": "/openapi.json",
        "models": ["gemma-2-2b-instruct"],
    }
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize("accept", [[], ["Accept: */*"], ["Accept: text/plain"]])
async def test_ollama_client_can_check_that_the_server_runs(server, accept):
    response = await server.request("GET", "/", *accept)

    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert response.body == b"Ollama is running"
    assert response.headers["Vary"] == "Accept"
    head = await server.request("HEAD", "/", *accept)
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "17", b"")


async def test_host_is_not_markup(server):
    response = await server.request("GET", "/", BROWSER, "Host: <b>")

    assert b"<b>" not in response.body
