"""The routes of the Responses API over one model that a fake worker runs."""

import asyncio
import contextlib
import json

import aiohttp
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponsesServerEvent, ResponseStreamEvent
from pydantic import TypeAdapter

from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.responses.store import MemoryStore

from ...helpers import MODEL
from ..conftest import ServedModel, serving_model

_SOCKET_EVENTS = TypeAdapter(ResponsesServerEvent)
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

    def connect(self, **options):
        """Open a WebSocket."""
        return _connect(f"{self.server.url}/v1/responses", **options)


class Socket:
    """A WebSocket to the server."""

    def __init__(self, socket):
        self.socket = socket

    async def send(self, **event):
        await self.socket.send_json({"type": "response.create", "model": MODEL, **event})

    async def receive(self):
        """Return the next event as JSON."""
        async with asyncio.timeout(60):
            message = await self.socket.receive()
        assert aiohttp.WSMsgType.TEXT is message.type, message
        event = json.loads(message.data)
        _SOCKET_EVENTS.validate_python(event)
        return event

    async def events(self, **event):
        """Create a response, and return its events."""
        await self.send(**event)
        events = [await self.receive()]
        while events[-1]["type"] != "error" and events[-1].get("response", {}).get("status") in ("in_progress", None):
            events.append(await self.receive())
        return events

    async def respond(self, **event):
        """Create a response, and return it."""
        return (await self.events(**event))[-1]["response"]

    async def error(self, **event):
        """Send an event, and return the error that answers it."""
        (event,) = await self.events(**event)
        assert "error" == event["type"]
        return event["error"]

    async def close_code(self):
        """Wait until the server closes the connection."""
        async with asyncio.timeout(60):
            message = await self.socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), message
        return self.socket.close_code


@contextlib.asynccontextmanager
async def _connect(url, **options):
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0, **options) as socket:
        yield Socket(socket)


@contextlib.asynccontextmanager
async def serving_responses(tmp_path, **options):
    """Serve the routes; `options` are those of `create_app`."""

    def create_routes(backend, config):
        memory = MemoryStore(lambda: config().responses.max_bytes)
        return responses_routes(backend.service, memory, memory)

    async with serving_model(tmp_path, ServedResponses, create_routes, **options) as served:
        yield served


@pytest.fixture
async def served(tmp_path):
    async with serving_responses(tmp_path) as served:
        yield served


@pytest.fixture
async def openai_client(served):
    async with AsyncOpenAI(base_url=f"{served.server.url}/v1", api_key="x", max_retries=0) as client:
        yield client
