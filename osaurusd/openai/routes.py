"""The client routes, alike under `/` and `/v1`."""

from aiohttp import web

from osaurusd.openai import chat, completions, models
from osaurusd.web import body

PREFIXES = ("", "/v1")


def add_routes(app: web.Application) -> None:
    """Mount everything that clients may ask for."""
    for prefix in PREFIXES:
        app.router.add_get(f"{prefix}/health", _health)
        app.router.add_get(f"{prefix}/models", models.index)
        app.router.add_get(f"{prefix}/models/{{model:.+}}", models.show)
        app.router.add_post(f"{prefix}/chat/completions", chat.create)
        app.router.add_post(f"{prefix}/completions", completions.create)


async def _health(_: web.Request) -> web.Response:
    """The doors open only once requests can be served, so to answer is the answer."""
    return body.reply({"status": "ok"})
