"""The client routes over one model that a fake worker runs."""

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from osaurusd.config import Config, Defaults
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.inference.service import Service
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.rpc.process import Launch
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.models import disk
from tests.osaurusd.pool.helpers import COMMAND, until

MODEL = "gemma-2-2b-instruct"


@dataclass
class ServedModel:
    """A server with one model; replacing `config` is a reload."""

    config: Config
    folder: Path
    server: LiveServer | None = None
    admission: Admission | None = None

    async def post(self, path, **fields):
        """Send a request to the model, and return the response."""
        body = json.dumps({"model": MODEL, **fields}).encode()
        return await self.server.request("POST", path, "Content-Type: application/json", body=body)

    async def stream(self, path, **fields):
        """Return the events of a streamed response: JSON objects, and `[DONE]` unchanged."""
        response = await self.post(path, stream=True, **fields)
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        events = [line[6:].strip() for line in response.body.splitlines() if line.startswith(b"data: ")]
        return [json.loads(event) if event != b"[DONE]" else "[DONE]" for event in events]

    async def disconnect_from(self, path, **fields):
        """Send a request, and close the connection once the worker has it."""
        body = json.dumps({"model": MODEL, **fields}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        _, writer = await self.server.connect()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: "generate" in self.worker_frames())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def worker_frames(self):
        """Return the tags of the frames that the worker has received."""
        file = self.folder / "received"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
async def served_model(tmp_path):
    hub = tmp_path / "hub"
    folder = disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    served = ServedModel(Config(defaults=Defaults(temperature=0.0)), folder)
    catalog, pool = disk.make_catalog(tmp_path / "models", hub), Pool(PoolConfig(Launch(command=COMMAND)))

    def config():
        return served.config

    served.admission = Admission(config)
    routes = openai_routes(Service(catalog, pool, config), catalog, config)
    app = create_app([routes], config, admission=served.admission)
    async with serving(app, config) as served.server:
        yield served
    async with asyncio.timeout(20):
        await pool.close()
