"""Anthropic's routes beside OpenAI's, over one model that a fake worker runs."""

import json
from dataclasses import dataclass

import pytest

from osaurusd.config import Config, Server
from osaurusd.http.app import create_app
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.openai.routes import openai_routes
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.protocols.helpers import MODEL, REPO, running_backend

REPOS = (REPO, "mlx-community/gemma-2-9b-it-4bit", "mlx-community/gemma-2-27b-it-4bit")


@dataclass
class Anthropic:
    """A server."""

    server: LiveServer

    async def request(self, method, path, *headers, body=None):
        content = None if body is None else json.dumps(body).encode()
        headers = ("Content-Type: application/json", "anthropic-version: 2023-06-01", *headers)
        return await self.server.request(method, path, *headers, body=content)

    async def post(self, text="to be", path="/v1/messages", **fields):
        """Send a prompt to the model, and return the response."""
        body = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}
        return await self.request("POST", path, body={key: value for key, value in body.items() if value is not None})

    async def stream(self, text="to be", **fields):
        """Return the events of a stream, after checking their names."""
        response = await self.post(text, stream=True, **fields)
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        lines = response.body.decode().splitlines()
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert names == [event["type"] for event in events]
        return events


@pytest.fixture
async def anthropic(tmp_path):
    async with running_backend(tmp_path, *REPOS, max_position_embeddings=4096) as backend:
        service, catalog = backend.service, backend.catalog
        groups = [openai_routes(service, catalog, backend.pool), *anthropic_routes(service, catalog)]
        # No more pings, however long the load takes.
        config = Config(server=Server(first_byte_seconds=0))
        async with serving(create_app(groups, lambda: config)) as server:
            yield Anthropic(server)
