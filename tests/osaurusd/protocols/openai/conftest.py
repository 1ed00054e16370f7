import asyncio
import contextlib
import json
from dataclasses import dataclass

import pytest
from aiohttp import web

from osaurusd.config import Config, Defaults
from osaurusd.http import keys
from osaurusd.http.app import make_app
from osaurusd.http.limits import Gate
from osaurusd.http.settings import Settings
from osaurusd.pool.pool import Pool
from osaurusd.pool.terms import Terms
from osaurusd.protocols.openai.routes import add_routes
from osaurusd.rpc.process import Launch
from tests.osaurusd.http.serve import Server, serving
from tests.osaurusd.models import disk
from tests.osaurusd.pool.asking import COMMAND, until

MODEL = "gemma-2-2b-instruct"


@dataclass
class Serving:
    """The client routes over one model, which a fake worker runs."""

    server: Server
    folder: object
    app: web.Application

    async def post(self, path, **fields):
        """The answer to a request to the model."""
        body = json.dumps({"model": MODEL, **fields}).encode()
        return await self.server.ask("POST", path, "Content-Type: application/json", body=body)

    async def stream(self, path, **fields):
        """The events of a streamed answer: JSON objects, and `[DONE]` as it is."""
        answer = await self.post(path, stream=True, **fields)
        assert (200, "text/event-stream") == (answer.status, answer.headers["Content-Type"])
        data = [line[6:].strip() for line in answer.body.splitlines() if line.startswith(b"data: ")]
        return [json.loads(one) if one != b"[DONE]" else "[DONE]" for one in data]

    @contextlib.asynccontextmanager
    async def hung_up(self, path, **fields):
        """A request whose client has gone by the time the block begins."""
        body = json.dumps({"model": MODEL, **fields}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        _, writer = await self.server.connect()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: "generate" in self.received())
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        yield

    def received(self):
        """The tags of the frames that the worker has got."""
        file = self.folder / "received"
        return file.read_text().split() if file.exists() else []


@pytest.fixture
async def serving_model(tmp_path):
    hub = tmp_path / "hub"
    folder = disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    config = Config(defaults=Defaults(temperature=0.0))
    settings = Settings(config, lambda: config)
    app = make_app(config, Gate(lambda: settings.config))
    app[keys.SETTINGS] = settings
    app[keys.CATALOG] = disk.make_catalog(tmp_path / "models", hub)
    app[keys.POOL] = Pool(Terms(Launch(command=COMMAND)))
    add_routes(app)
    async with serving(app) as server:
        yield Serving(server, folder, app)
    async with asyncio.timeout(20):
        await app[keys.POOL].close()
