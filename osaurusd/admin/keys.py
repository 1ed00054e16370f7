"""API keys. On the Unix socket only, so that a client with a key cannot create more of them."""

import asyncio
from collections.abc import Callable

from aiohttp import web

from osaurusd.admin.routes import get, post
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.json import json_response, read_json
from osaurusd.http.routes import Route
from osaurusd.wire.keys import KeyRequest, KeyRoute, RevokeRequest


class KeysApi:
    """Handlers for API keys.

    Args:
        keys: the accepted keys.
        on_create: called after a key was created.
    """

    def __init__(self, keys: ApiKeys, on_create: Callable[[], None] = lambda: None) -> None:
        self._keys = keys
        self._on_create = on_create

    @property
    def routes(self) -> list[Route]:
        return [
            get(KeyRoute.KEYS, self.list_keys),
            post(KeyRoute.KEYS, self.create),
            post(KeyRoute.REVOKE, self.revoke),
        ]

    async def list_keys(self, _: web.Request) -> web.Response:
        return json_response(self._keys.infos())

    async def create(self, request: web.Request) -> web.Response:
        """Create a key. Only this response contains its secret."""
        body = await read_json(request, KeyRequest)
        key = await asyncio.to_thread(self._keys.create, body.name)
        self._on_create()
        return json_response(key, status=201)

    async def revoke(self, request: web.Request) -> web.Response:
        body = await read_json(request, RevokeRequest)
        return json_response(await asyncio.to_thread(self._keys.revoke, body.id))
