"""`GET /models` and `GET /models/{id}`."""

from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.http.json import json_response
from osaurusd.protocols.openai.render import models as render


async def index(request: web.Request) -> web.Response:
    """The models that can be served, and no others; aliases are listed like models."""
    records = await request.app[keys.CATALOG].available()
    named = [(name, record) for record in records for name in (record.name, *record.aliases)]
    return json_response(render.ModelList(data=[render.model(record, name) for name, record in named]))


async def show(request: web.Request) -> web.Response:
    """One model by any of its names."""
    record = await request.app[keys.CATALOG].find(request.match_info["model"])
    return json_response(render.model(record, record.name))
