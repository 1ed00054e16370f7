"""`GET /models` and `GET /models/{id}`."""

from aiohttp import web

from osaurusd.http import body, keys
from osaurusd.protocols.openai.render import models as render


async def index(request: web.Request) -> web.Response:
    """The models that can be served, and no others; aliases are listed like models."""
    records = await request.app[keys.CATALOG].available()
    named = [(name, record) for record in records for name in (record.name, *record.aliases)]
    return body.reply(render.ModelList(data=[render.model(record, name) for name, record in named]))


async def show(request: web.Request) -> web.Response:
    """One model by any of its names."""
    record = await request.app[keys.CATALOG].find(request.match_info["model"])
    return body.reply(render.model(record, record.name))
