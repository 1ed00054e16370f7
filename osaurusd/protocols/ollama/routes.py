"""The routes of Ollama's API."""

from osaurusd.http.routes import Route, RouteGroup
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.errors import error_response
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models

PREFIX = "/api"


def ollama_routes(generation: Generation, embeddings: Embeddings, models: Models, management: Management) -> RouteGroup:
    """Create the route group. Clients also check that the server runs by `GET /`, which `osaurusd.ui` serves."""
    routes = [
        Route("GET", "/version", models.version),
        Route("GET", "/tags", models.tags),
        Route("GET", "/ps", models.running),
        Route("POST", "/show", models.show),
        Route("POST", "/chat", generation.chat, admitted=True),
        Route("POST", "/generate", generation.generate, admitted=True),
        Route("POST", "/embed", embeddings.embed, admitted=True),
        Route("POST", "/embeddings", embeddings.embed_one, admitted=True),
        Route("POST", "/pull", management.pull),
        Route("POST", "/push", management.push),
        Route("POST", "/copy", management.copy),
        Route("POST", "/create", management.create),
        Route("DELETE", "/delete", management.delete),
    ]
    return RouteGroup("ollama", routes, error_response, (PREFIX,))
