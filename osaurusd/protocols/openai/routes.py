"""The routes of OpenAI's API, served with and without the prefix `/v1`."""

from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.inference.service import Service
from osaurusd.models.catalog import Catalog
from osaurusd.pool.pool import Pool
from osaurusd.protocols.openai.chat import ChatCompletions
from osaurusd.protocols.openai.completions import Completions
from osaurusd.protocols.openai.decisions import Decisions
from osaurusd.protocols.openai.embeddings import Embeddings
from osaurusd.protocols.openai.models import Models
from osaurusd.protocols.openai.rerank import Rerank

PREFIXES = ("", "/v1")


def openai_routes(service: Service, catalog: Catalog, pool: Pool) -> RouteGroup:
    """Create the route group.

    Args:
        service: serves generation requests.
        catalog: lists models.
        pool: knows which models are loaded.
    """
    models = Models(catalog, pool)
    routes = [
        Route("GET", "/models", models.list_available),
        Route("GET", "/models/{model:[^/]+(?:/[^/]+)*}", models.show),
        Route("POST", "/chat/completions", ChatCompletions(service).create, admitted=True),
        Route("POST", "/completions", Completions(service).create, admitted=True),
        Route("POST", "/embeddings", Embeddings(service).create, admitted=True),
        Route("POST", "/rerank", Rerank(service).create, admitted=True),
        Route("POST", "/decisions", Decisions(service).create, admitted=True),
    ]
    return RouteGroup("openai", routes, error_response, PREFIXES)
