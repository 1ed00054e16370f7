"""`GET /models` and `GET /models/{id}`."""

from aiohttp import web

from osaurusd.openai import render
from osaurusd.web import body, keys


async def index(request: web.Request) -> web.Response:
    """The models that can be served, and no others."""
    records = await request.app[keys.CATALOG].available()
    return body.reply(render.ModelList(data=[render.model(record) for record in records]))


async def show(request: web.Request) -> web.Response:
    """One model by any of its names."""
    return body.reply(render.model(await request.app[keys.CATALOG].find(request.match_info["model"])))
