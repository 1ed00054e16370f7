"""`POST /chat/completions`."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from aiohttp import web

from osaurusd import ipc
from osaurusd.catalog.record import ModelRecord
from osaurusd.errors import InvalidRequest
from osaurusd.openai import render, translate
from osaurusd.openai.schema import ChatRequest
from osaurusd.pool.client import Event
from osaurusd.pool.pool import Pool
from osaurusd.web import body, keys, sse


async def create(request: web.Request) -> web.StreamResponse:
    """Answer a chat, as one object or as a stream of chunks."""
    chat = await body.read(request, ChatRequest)
    config = request.app[keys.CONFIG]
    record = await request.app[keys.CATALOG].find(_model(chat, config.default_model))
    order = translate.chat(chat, record.generation, config.defaults)
    envelope = render.Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=record.name)
    events = _events(request.app[keys.POOL], record, order)
    async with contextlib.aclosing(events):
        if chat.stream:
            include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
            return await sse.stream(request, render.chunks(envelope, events, include_usage=include_usage))
        return body.reply(await render.completion(envelope, events))


def _model(chat: ChatRequest, default: str | None) -> str:
    wanted = chat.model or default
    if not wanted:
        raise InvalidRequest(
            "`model`: is required; `GET /models` lists them, and `default_model` in the config serves requests without",
            param="model",
        )
    return wanted


async def _events(pool: Pool, record: ModelRecord, order: ipc.Generate) -> AsyncGenerator[Event]:
    """The worker's events; closing this, as an aborted handler does, cancels the request."""
    async with pool.lease(record) as worker, contextlib.aclosing(worker.generate(order)) as events:
        async for event in events:
            yield event
