"""`/v0/keys`: the API keys. On the Unix socket only, so that whoever has a key cannot make further ones."""

import asyncio

from aiohttp import web

from osaurusd.admin.context import KEYRING
from osaurusd.http import body
from osaurusd.wire.keys import KeyRequest, KeyRoute, RevokeRequest


def add_routes(app: web.Application) -> None:
    """Mount them; `KEYRING` must be in the application."""
    app.router.add_get(KeyRoute.KEYS, _list)
    app.router.add_post(KeyRoute.KEYS, _create)
    app.router.add_post(KeyRoute.REVOKE, _revoke)


async def _create(request: web.Request) -> web.Response:
    """Make a key, and tell it, this once."""
    order = await body.read(request, KeyRequest)
    return body.reply(await asyncio.to_thread(request.app[KEYRING].create, order.name), status=201)


async def _list(request: web.Request) -> web.Response:
    return body.reply(request.app[KEYRING].all)


async def _revoke(request: web.Request) -> web.Response:
    order = await body.read(request, RevokeRequest)
    return body.reply(await asyncio.to_thread(request.app[KEYRING].revoke, order.id))
