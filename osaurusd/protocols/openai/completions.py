"""`POST /completions`, OpenAI's legacy endpoint."""

import contextlib

from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.protocols.openai import generation
from osaurusd.protocols.openai.errors import error_event
from osaurusd.protocols.openai.limits import Limits
from osaurusd.protocols.openai.render import completions as render
from osaurusd.protocols.openai.schema.completions import CompletionRequest
from osaurusd.protocols.openai.translate import completions as translate


async def create(request: web.Request) -> web.StreamResponse:
    """Continue one or several prompts, as one object or as a stream of chunks."""
    asked = await read_json(request, CompletionRequest)
    config = request.app[keys.SETTINGS].config
    Limits(config.input).completion(asked)
    record = await generation.find(request, asked.model)
    orders = translate.orders(asked, record.generation, config.defaults)
    envelope = generation.envelope("cmpl", record)
    async with contextlib.aclosing(generation.events(request, record, orders)) as events:
        if asked.stream:
            payloads = render.chunks(envelope, events, include_usage=asked.include_usage)
            return await stream_sse(request, payloads, error_event=error_event, last_event=b"[DONE]")
        return json_response(await render.completion(envelope, events))
