"""`POST /chat/completions`."""

import contextlib

from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.http.json import json_response, read_json
from osaurusd.http.streaming import stream_sse
from osaurusd.protocols.openai import generation
from osaurusd.protocols.openai.errors import error_event
from osaurusd.protocols.openai.limits import Limits
from osaurusd.protocols.openai.render import chat as render
from osaurusd.protocols.openai.render.chunks import chunks
from osaurusd.protocols.openai.schema.chat import ChatRequest
from osaurusd.protocols.openai.translate import chat as translate


async def create(request: web.Request) -> web.StreamResponse:
    """Answer a chat, as one object or as a stream of chunks."""
    chat = await read_json(request, ChatRequest)
    config = request.app[keys.SETTINGS].config
    Limits(config.input).chat(chat)
    record = await generation.find(request, chat.model)
    order = translate.order(chat, record.generation, config.defaults)
    envelope = generation.envelope("chatcmpl", record)
    async with contextlib.aclosing(generation.events(request, record, [order])) as events:
        if chat.stream:
            payloads = chunks(envelope, events, include_usage=chat.include_usage)
            return await stream_sse(request, payloads, error_event=error_event, last_event=b"[DONE]")
        return json_response(await render.completion(envelope, events))
