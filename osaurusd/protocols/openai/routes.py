"""The routes of OpenAI's API, served with and without the prefix `/v1`."""

from aiohttp import web

from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.inference.service import Service
from osaurusd.models.catalog import Catalog
from osaurusd.protocols.openai.chat import ChatCompletions
from osaurusd.protocols.openai.completions import Completions
from osaurusd.protocols.openai.decisions import Decisions
from osaurusd.protocols.openai.embeddings import Embeddings
from osaurusd.protocols.openai.models import Models
from osaurusd.protocols.openai.rerank import Rerank

PREFIXES = ("", "/v1")


def openai_routes(service: Service, catalog: Catalog) -> RouteGroup:
    """Create the route group.

    Args:
        service: serves generation requests.
        catalog: lists models.
    """
    models = Models(catalog)
    routes = [
        Route("GET", "/health", _health),
        Route("GET", "/models", models.list_available),
        Route("GET", "/models/{model:[^/]+(?:/[^/]+)*}", models.show),
        Route("POST", "/chat/completions", ChatCompletions(service).create, admitted=True),
        Route("POST", "/completions", Completions(service).create, admitted=True),
        Route("POST", "/embeddings", Embeddings(service).create, admitted=True),
        Route("POST", "/rerank", Rerank(service).create, admitted=True),
        Route("POST", "/decisions", Decisions(service).create, admitted=True),
    ]
    return RouteGroup("openai", routes, error_response, PREFIXES)


async def _health(_: web.Request) -> web.Response:
    """Report that the daemon serves requests: it opens its ports only when it can."""
    return json_response({"status": "ok"})
