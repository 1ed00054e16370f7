"""`POST /completions`, OpenAI's legacy endpoint."""

import contextlib

from aiohttp import web

from osaurusd.openai import generation
from osaurusd.openai.limits import Limits
from osaurusd.openai.render import completions as render
from osaurusd.openai.schema.completions import CompletionRequest
from osaurusd.openai.translate import completions as translate
from osaurusd.web import body, keys, sse


async def create(request: web.Request) -> web.StreamResponse:
    """Continue one or several prompts, as one object or as a stream of chunks."""
    asked = await body.read(request, CompletionRequest)
    config = request.app[keys.SETTINGS].config
    Limits(config.input).completion(asked)
    record = await generation.find(request, asked.model)
    orders = translate.orders(asked, record.generation, config.defaults)
    envelope = generation.envelope("cmpl", record)
    async with contextlib.aclosing(generation.events(request, record, orders)) as events:
        if asked.stream:
            return await sse.stream(request, render.chunks(envelope, events, include_usage=asked.include_usage))
        return body.reply(await render.completion(envelope, events))
