"""The client routes, alike under `/` and `/v1`."""

from aiohttp import web

from osaurusd.http import body, keys
from osaurusd.protocols.openai import chat, completions, models
from osaurusd.protocols.openai.description.document import document

PREFIXES = ("", "/v1")


def add_routes(app: web.Application) -> None:
    """Mount everything that clients may ask for."""
    for prefix in PREFIXES:
        app.router.add_get(f"{prefix}/health", _health)
        app.router.add_get(f"{prefix}/openapi.json", _describe)
        app.router.add_get(f"{prefix}/models", models.index)
        app.router.add_get(f"{prefix}/models/{{model:.+}}", models.show)
        app.router.add_post(f"{prefix}/chat/completions", chat.create)
        app.router.add_post(f"{prefix}/completions", completions.create)


async def _health(_: web.Request) -> web.Response:
    """The doors open only once requests can be served, so to answer is the answer."""
    return body.reply({"status": "ok"})


async def _describe(request: web.Request) -> web.Response:
    """The description of these routes, under the limits in force; made when it is first asked for."""
    described = document(request.app[keys.SETTINGS].config.input)
    return web.Response(body=described, content_type="application/json")
