"""OpenAI's API, with and without the prefix `/v1`."""

from aiohttp import web

from osaurusd import app_keys as keys
from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.protocols.openai import chat, completions, models
from osaurusd.protocols.openai.description.document import document

PREFIXES = ("", "/v1")


async def _health(_: web.Request) -> web.Response:
    """Respond once requests can be served: the TCP socket does not listen before that."""
    return json_response({"status": "ok"})


async def _describe(request: web.Request) -> web.Response:
    """Return the OpenAPI description, with the limits in force."""
    described = document(request.app[keys.SETTINGS].config.input)
    return web.Response(body=described, content_type="application/json")


ROUTES = RouteGroup(
    "openai",
    [
        Route("GET", "/health", _health),
        Route("GET", "/openapi.json", _describe),
        Route("GET", "/models", models.index),
        Route("GET", "/models/{model:.+}", models.show),
        Route("POST", "/chat/completions", chat.create, admitted=True),
        Route("POST", "/completions", completions.create, admitted=True),
    ],
    error_response,
    PREFIXES,
)
