"""`/v0/keys`: the API keys. On the Unix socket only, so that whoever has a key cannot make further ones."""

import asyncio

from aiohttp import web

from osaurusd.admin.context import KEYRING
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.wire.keys import KeyRequest, KeyRoute, RevokeRequest


async def _create(request: web.Request) -> web.Response:
    """Make a key, and tell it, this once."""
    order = await read_json(request, KeyRequest)
    return json_response(await asyncio.to_thread(request.app[KEYRING].create, order.name), status=201)


async def _list(request: web.Request) -> web.Response:
    return json_response(request.app[KEYRING].infos())


async def _revoke(request: web.Request) -> web.Response:
    order = await read_json(request, RevokeRequest)
    return json_response(await asyncio.to_thread(request.app[KEYRING].revoke, order.id))


ROUTES = [
    Route("GET", KeyRoute.KEYS, _list),
    Route("POST", KeyRoute.KEYS, _create),
    Route("POST", KeyRoute.REVOKE, _revoke),
]
