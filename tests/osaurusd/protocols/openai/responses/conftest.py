"""The routes of the Responses API over one model that a fake worker runs."""

import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from osaurusd.protocols.openai.responses.endpoints import Responses
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.responses.store import MemoryStore

from ..conftest import ServedModel, serving_model

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
    def create_routes(backend, config):
        return responses_routes(Responses(backend.service, MemoryStore(lambda: config().responses.max_bytes)))

    async with serving_model(tmp_path, ServedResponses, create_routes) as served:
        yield served


@pytest.fixture
async def openai_client(served):
    async with AsyncOpenAI(base_url=f"{served.server.url}/v1", api_key="x", max_retries=0) as client:
        yield client
