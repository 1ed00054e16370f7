"""`POST /api/chat` and `POST /api/generate`, from the body of the request to the response."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from osaurusd.conversion import convert
from osaurusd.errors import Busy
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_ndjson
from osaurusd.inference.defaults import RequestDefaults
from osaurusd.inference.field_paths import FieldPaths
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.limits import MESSAGES
from osaurusd.inference.request import GenerationRequest
from osaurusd.inference.service import Service
from osaurusd.models.record import ModelRecord
from osaurusd.pool.pool import Pool
from osaurusd.protocols.ollama.errors import error_line
from osaurusd.protocols.ollama.names import parse_keep_alive, strip_tag
from osaurusd.protocols.ollama.rendering import Renderer, collect, on_first_event, stream
from osaurusd.protocols.ollama.requests import CHAT_PATHS, GENERATE_PATHS, build_chat, build_generation
from osaurusd.protocols.ollama.types import ChatRequest, GenerateRequest

Body = TypeVar("Body", ChatRequest, GenerateRequest)
Build = Callable[[Body, ModelRecord, RequestDefaults, ImageCollector], GenerationRequest]


class Generation:
    """Handles the endpoints.

    Args:
        service: runs the requests.
        pool: loads and unloads models, and keeps them loaded.
    """

    def __init__(self, service: Service, pool: Pool) -> None:
        self._service = service
        self._pool = pool

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._respond(request, await read_json(request, ChatRequest), CHAT_PATHS, build_chat)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self._respond(request, await read_json(request, GenerateRequest), GENERATE_PATHS, build_generation)

    async def _respond(
        self, request: web.Request, body: Body, paths: FieldPaths, build: Build[Body]
    ) -> web.StreamResponse:
        """Respond to a request; one without input only loads or unloads the model."""
        with paths.named():
            # Any model can be loaded and unloaded.
            record = await self._service.find(strip_tag(body.model), "generate" if body.has_input else None)
            keep_alive = parse_keep_alive(body.keep_alive)
            renderer = Renderer(body.model or record.name, is_chat=isinstance(body, ChatRequest))
            if not body.has_input:
                return json_response(renderer.without_output(await load_or_unload(self._pool, record, keep_alive)))
            if isinstance(body, ChatRequest):
                self._service.check_lengths({MESSAGES: body.messages})
            images = ImageCollector()
            generation = await convert(build, body, record, self._service.defaults(record), images)
            stream_output = body.stream
            del body  # it contains the text of images
            events = self._service.generate(record, [generation], images)
            if keep_alive is not None:
                events = on_first_event(events, lambda: self._pool.set_keep_alive(record, keep_alive))
            async with contextlib.aclosing(events):
                if stream_output is False:
                    return json_response(await collect(renderer, events))
                return await stream_ndjson(
                    request,
                    stream(renderer, events),
                    error_value=lambda error: error_line(paths.name_field(error)),
                    keep_alive_value=renderer.keep_alive,
                )


async def load_or_unload(pool: Pool, record: ModelRecord, keep_alive: float | None) -> str:
    """Load a model, or unload it if its keep-alive is 0; return what was done, as `done_reason`."""
    if keep_alive != 0:
        await pool.load(record, keep_alive)
        return "load"
    try:
        await pool.unload(record.repo)
    except Busy:
        # It is unloaded after its last request, unless it is pinned.
        pool.set_keep_alive(record, 0)
    return "unload"
