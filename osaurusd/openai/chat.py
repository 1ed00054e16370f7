"""`POST /chat/completions`."""

import contextlib

from aiohttp import web

from osaurusd.openai import generation
from osaurusd.openai.limits import Limits
from osaurusd.openai.render import chat as render
from osaurusd.openai.render.chunks import chunks
from osaurusd.openai.schema.chat import ChatRequest
from osaurusd.openai.translate import chat as translate
from osaurusd.web import body, keys, sse


async def create(request: web.Request) -> web.StreamResponse:
    """Answer a chat, as one object or as a stream of chunks."""
    chat = await body.read(request, ChatRequest)
    config = request.app[keys.SETTINGS].config
    Limits(config.input).chat(chat)
    record = await generation.find(request, chat.model)
    order = translate.order(chat, record.generation, config.defaults)
    envelope = generation.envelope("chatcmpl", record)
    async with contextlib.aclosing(generation.events(request, record, [order])) as events:
        if chat.stream:
            return await sse.stream(request, chunks(envelope, events, include_usage=chat.include_usage))
        return body.reply(await render.completion(envelope, events))
