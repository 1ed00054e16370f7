import asyncio
import contextlib
import json
from dataclasses import dataclass

import pytest
from aiohttp import web
from tests.osaurusd.pool.asking import COMMAND, until

from osaurusd import app_keys as keys
from osaurusd.config import Config, Defaults
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.routes import ROUTES
from osaurusd.rpc.process import Launch
from osaurusd.settings import Settings
from tests.osaurusd.http.serve import LiveServer, serving
from tests.osaurusd.models import disk

MODEL = "gemma-2-2b-instruct"


@dataclass
class Serving:
    """The client routes over one model, which a fake worker runs."""

    server: LiveServer
    folder: object
    app: web.Application
    admission: Admission

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
    admission = Admission(lambda: settings.config)
    app = create_app([ROUTES], lambda: settings.config, admission=admission)
    app[keys.SETTINGS] = settings
    app[keys.CATALOG] = disk.make_catalog(tmp_path / "models", hub)
    app[keys.POOL] = Pool(PoolConfig(Launch(command=COMMAND)))
    async with serving(app, lambda: settings.config) as server:
        yield Serving(server, folder, app, admission)
    async with asyncio.timeout(20):
        await app[keys.POOL].close()
