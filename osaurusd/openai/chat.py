"""`POST /chat/completions`."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator

from aiohttp import web

from osaurusd import ipc
from osaurusd.catalog.catalog import Catalog
from osaurusd.catalog.record import ModelRecord
from osaurusd.config import Config
from osaurusd.errors import InvalidRequest, ModelNotFound
from osaurusd.openai import render, translate
from osaurusd.openai.schema import ChatRequest
from osaurusd.pool.client import Event
from osaurusd.pool.pool import Pool
from osaurusd.web import body, keys, sse


async def create(request: web.Request) -> web.StreamResponse:
    """Answer a chat, as one object or as a stream of chunks."""
    chat = await body.read(request, ChatRequest)
    config = request.app[keys.SETTINGS].config
    record = await _find(request.app[keys.CATALOG], chat.model, config)
    order = translate.chat(chat, record.generation, config.defaults)
    envelope = render.Envelope(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=record.name)
    events = _events(request.app[keys.POOL], record, order)
    async with contextlib.aclosing(events):
        if chat.stream:
            include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
            return await sse.stream(request, render.chunks(envelope, events, include_usage=include_usage))
        return body.reply(await render.completion(envelope, events))


async def _find(catalog: Catalog, model: str | None, config: Config) -> ModelRecord:
    """The model asked for, or the default one where none is named or, if the config says so, a stranger is."""
    if not model:
        if config.default_model is None:
            raise InvalidRequest(
                "`model`: is required; `GET /models` lists them, and `default_model` in the config serves requests "
                "without",
                param="model",
            )
        return await catalog.find(config.default_model)
    try:
        return await catalog.find(model)
    except ModelNotFound:
        if config.default_for_unknown and config.default_model is not None:
            return await catalog.find(config.default_model)
        raise


async def _events(pool: Pool, record: ModelRecord, order: ipc.Generate) -> AsyncGenerator[Event]:
    """The worker's events; closing this, as an aborted handler does, cancels the request."""
    async with pool.lease(record) as worker, contextlib.aclosing(worker.generate(order)) as events:
        async for event in events:
            yield event
