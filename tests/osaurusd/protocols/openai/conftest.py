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
from osaurusd.protocols.openai.routes import openai_routes
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.pool.helpers import block_until, until
from tests.osaurusd.protocols.helpers import MODEL, REPO, running_backend


@dataclass
class ServedModel:
    """A server with one model; replacing `config` is a reload."""

    config: Config
    folder: Path | None = None
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
        async with self.server.connection() as (_, writer):
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: "generate" in self.worker_frames())

    def worker_frames(self):
        """Return the tags of the frames that the worker has received."""
        file = self.folder / "received"
        return file.read_text().split() if file.exists() else []

    async def until_received(self, tag, count=1):
        """Wait until the worker has received so many of these frames, even while the time of the loop stands still."""
        await asyncio.to_thread(block_until, lambda: self.worker_frames().count(tag) == count)

    def release(self):
        """Let the worker complete the requests with the text `hold`."""
        (self.folder / "release").touch()

    def current_config(self):
        return self.config


@contextlib.asynccontextmanager
async def serving_model(tmp_path, served_type, create_routes, **options):
    """Serve the routes that `create_routes` creates for a backend and a function that returns the configuration.

    `options` are those of `create_app`.
    """
    served = served_type(Config(defaults=Defaults(temperature=0.0)))
    config = served.current_config
    async with running_backend(tmp_path, REPO, config=config) as backend:
        (served.folder,) = backend.folders
        served.admission = Admission(config)
        app = create_app([create_routes(backend, config)], config, admission=served.admission, **options)
        async with serving(app, config) as served.server:
            yield served


@pytest.fixture
async def served_model(tmp_path):
    def create_routes(backend, config):
        return openai_routes(backend.service, backend.catalog, backend.pool)

    async with serving_model(tmp_path, ServedModel, create_routes) as served:
        yield served
