"""The routes of the Responses API."""

from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.protocols.openai.responses.endpoints import Responses

PREFIXES = ("", "/v1")


def responses_routes(responses: Responses) -> RouteGroup:
    """Create the route group."""
    routes = [
        Route("POST", "/responses", responses.create, admitted=True),
        Route("POST", "/responses/input_tokens", responses.count_input_tokens, admitted=True),
        Route("POST", "/responses/compact", responses.compact, admitted=True),
        Route("GET", "/responses/{response}", responses.show),
        Route("DELETE", "/responses/{response}", responses.delete),
        Route("POST", "/responses/{response}/cancel", responses.cancel),
        Route("GET", "/responses/{response}/input_items", responses.list_input_items),
    ]
    return RouteGroup("responses", routes, error_response, PREFIXES)
