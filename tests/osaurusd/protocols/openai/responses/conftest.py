"""The routes of the Responses API over one model that a fake worker runs."""

import asyncio

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from osaurusd.config import Config, Defaults
from osaurusd.http.admission import Admission
from osaurusd.http.app import create_app
from osaurusd.inference.service import Service
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.responses.endpoints import Responses
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.responses.store import MemoryStore
from osaurusd.rpc.process import Launch
from tests.osaurusd.http.serve import serving
from tests.osaurusd.models import disk
from tests.osaurusd.pool.helpers import COMMAND

from ..conftest import ServedModel

_EVENTS = TypeAdapter(ResponseStreamEvent)


class ServedResponses(ServedModel):
    """A server whose responses are validated with the types of OpenAI's client."""

    async def respond(self, input_, **fields):
        """Create a response, and return it as JSON."""
        response = await self.post("/v1/responses", input=input_, **fields)
        assert 200 == response.status, response
        Response.model_validate(response.json)
        return response.json

    async def events(self, input_, **fields):
        """Stream a response, and return its events as JSON."""
        *events, end = await self.stream("/v1/responses", input=input_, **fields)
        assert "[DONE]" == end
        assert list(range(len(events))) == [event["sequence_number"] for event in events]
        for event in events:
            _EVENTS.validate_python(event)
        return events

    async def get(self, path):
        return await self.server.request("GET", f"/v1/responses/{path}")


@pytest.fixture
async def served(tmp_path):
    hub = tmp_path / "hub"
    folder = disk.write_hub(hub, "mlx-community/gemma-2-2b-it-4bit", disk.model())
    served = ServedResponses(Config(defaults=Defaults(temperature=0.0)), folder)
    catalog, pool = disk.make_catalog(tmp_path / "models", hub), Pool(PoolConfig(Launch(command=COMMAND)))

    def config():
        return served.config

    served.admission = Admission(config)
    store = MemoryStore(lambda: served.config.responses.max_bytes)
    routes = responses_routes(Responses(Service(catalog, pool, config), store))
    app = create_app([routes], config, admission=served.admission)
    async with serving(app, config) as served.server:
        yield served
    async with asyncio.timeout(20):
        await pool.close()


@pytest.fixture
async def openai_client(served):
    async with AsyncOpenAI(base_url=f"{served.server.url}/v1", api_key="x", max_retries=0) as client:
        yield client
