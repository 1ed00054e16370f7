"""The routes of Anthropic's API, served with and without the prefix `/v1`."""

from osaurusd.http.routes import Route, RouteGroup
from osaurusd.inference.service import Service
from osaurusd.models.catalog import Catalog
from osaurusd.protocols.anthropic.endpoints import Messages
from osaurusd.protocols.anthropic.errors import error_response
from osaurusd.protocols.anthropic.models import Models

PREFIXES = ("", "/v1")

VERSION_HEADER = "anthropic-version"
"""Anthropic's clients send it with every request. Any version is accepted."""

REQUEST_ID_HEADER = "request-id"


def anthropic_routes(service: Service, catalog: Catalog) -> list[RouteGroup]:
    """Create the route groups: messages, and the list of models, whose paths are those of OpenAI's API too."""
    messages, models = Messages(service), Models(catalog)
    message_routes = [
        Route("POST", "", messages.create, admitted=True),
        Route("POST", "/count_tokens", messages.count_tokens, admitted=True),
    ]
    model_routes = [
        Route("GET", "/models", models.list_available),
        Route("GET", "/models/{model:[^/]+(?:/[^/]+)*}", models.show),
    ]
    return [
        RouteGroup(
            "anthropic",
            message_routes,
            error_response,
            [f"{prefix}/messages" for prefix in PREFIXES],
            request_id_header=REQUEST_ID_HEADER,
        ),
        RouteGroup(
            "anthropic models",
            model_routes,
            error_response,
            PREFIXES,
            header=VERSION_HEADER,
            request_id_header=REQUEST_ID_HEADER,
        ),
    ]
