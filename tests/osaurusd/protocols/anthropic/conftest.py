"""Anthropic's routes beside OpenAI's, over one model that a fake worker runs."""

import asyncio
import json
from dataclasses import dataclass

import pytest

from osaurusd.config import Config
from osaurusd.http.app import create_app
from osaurusd.inference.service import Service
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.pool import Pool
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.rpc.process import Launch
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.models import disk
from tests.osaurusd.pool.helpers import COMMAND

REPOS = ("mlx-community/gemma-2-2b-it-4bit", "mlx-community/gemma-2-9b-it-4bit", "mlx-community/gemma-2-27b-it-4bit")
MODEL = "gemma-2-2b-instruct"


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
    hub = tmp_path / "hub"
    for repo in REPOS:
        disk.write_hub(hub, repo, disk.model(max_position_embeddings=4096))
    catalog, pool = disk.make_catalog(tmp_path / "models", hub), Pool(PoolConfig(Launch(command=COMMAND)))
    service = Service(catalog, pool, Config)
    groups = [openai_routes(service, catalog, Config), *anthropic_routes(service, catalog)]
    async with serving(create_app(groups, Config)) as server:
        yield Anthropic(server)
    async with asyncio.timeout(20):
        await pool.close()
