"""What chats and legacy completions do alike: find the model, and have its worker answer."""

import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence

from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.errors import InvalidRequest, ModelNotFound
from osaurusd.inference.events import Event
from osaurusd.inference.request import GenerationRequest
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai import batch, content
from osaurusd.protocols.openai.render.envelope import Envelope


async def find(request: web.Request, model: str | None) -> ModelRecord:
    """The model asked for, or the default one where none is named or, if the config says so, a stranger is.

    Raises:
        ModelNotFound: it is not here; InvalidRequest: none is named, and there is no default.
    """
    catalog, config = request.app[keys.CATALOG], request.app[keys.SETTINGS].config
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


def envelope(kind: str, record: ModelRecord) -> Envelope:
    """The envelope of a new reply; `kind` is what its id begins with."""
    return Envelope(id=f"{kind}-{uuid.uuid4().hex}", created=int(time.time()), model=record.name)


async def events(
    request: web.Request, record: ModelRecord, orders: Sequence[GenerationRequest]
) -> AsyncGenerator[Event]:
    """The worker's events as `batch.run` yields them; closing this, as an aborted handler does, cancels the request."""
    async with request.app[keys.POOL].lease(record) as worker:
        answer = batch.run(worker, orders)
        if request.app[keys.SETTINGS].config.log.content:
            answer = content.logged(answer, orders)
        async with contextlib.aclosing(answer) as found:
            async for event in found:
                yield event
