"""The routes of the Responses API."""

from osaurusd.http.errors import error_response
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.inference.service import Service
from osaurusd.protocols.openai.responses.conversations import Conversations
from osaurusd.protocols.openai.responses.creation import ConversationLocks, ResponseCreator
from osaurusd.protocols.openai.responses.endpoints import Responses
from osaurusd.protocols.openai.responses.store import MemoryStore, ObjectStore
from osaurusd.protocols.openai.responses.websocket import ResponseSockets

PREFIXES = ("", "/v1")


def responses_routes(service: Service, store: ObjectStore, memory: MemoryStore) -> RouteGroup:
    """Create the route group.

    Args:
        service: serves generation requests.
        store: keeps responses and conversations.
        memory: keeps what clients may continue only over the same WebSocket.
    """
    locks = ConversationLocks()
    creator = ResponseCreator(service, locks)
    responses, conversations = Responses(creator, store), Conversations(service, store, locks)
    item = "/conversations/{conversation}/items/{item}"
    routes = [
        Route("POST", "/responses", responses.create, admitted=True),
        Route("GET", "/responses", ResponseSockets(creator, store, memory).serve),
        Route("POST", "/responses/input_tokens", responses.count_input_tokens, admitted=True),
        Route("POST", "/responses/compact", responses.compact, admitted=True),
        Route("GET", "/responses/{response}", responses.show),
        Route("DELETE", "/responses/{response}", responses.delete),
        Route("POST", "/responses/{response}/cancel", responses.cancel),
        Route("GET", "/responses/{response}/input_items", responses.list_input_items),
        Route("POST", "/conversations", conversations.create),
        Route("GET", "/conversations/{conversation}", conversations.show),
        Route("POST", "/conversations/{conversation}", conversations.update),
        Route("DELETE", "/conversations/{conversation}", conversations.delete),
        Route("POST", "/conversations/{conversation}/items", conversations.add_items),
        Route("GET", "/conversations/{conversation}/items", conversations.list_items),
        Route("GET", item, conversations.show_item),
        Route("DELETE", item, conversations.delete_item),
    ]
    return RouteGroup("responses", routes, error_response, PREFIXES)
