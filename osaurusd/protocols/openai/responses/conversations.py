"""The endpoints of conversations, which collect the items of their responses."""

import time

import msgspec
from aiohttp import web
from msgspec.structs import replace

from osaurusd.conversion import convert
from osaurusd.errors import NotFound
from osaurusd.http.errors import excerpt
from osaurusd.http.json import json_response, read_json
from osaurusd.http.request import CONTEXT
from osaurusd.inference.images import ImageCollector
from osaurusd.inference.limits import MESSAGES
from osaurusd.inference.service import Service
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.responses.creation import ConversationLocks, find_conversation
from osaurusd.protocols.openai.responses.items import CONVERSATION_PREFIX, input_items, new_id, parse_items
from osaurusd.protocols.openai.responses.paging import list_of, page_of
from osaurusd.protocols.openai.responses.request import check_depth
from osaurusd.protocols.openai.responses.store import (
    ObjectStore,
    Scope,
    StoredObject,
    decode_items,
    encode_items,
)
from osaurusd.protocols.openai.responses.types import (
    Conversation,
    CreateConversation,
    CreateItems,
    DeletedConversation,
    Item,
    UpdateConversation,
)

_BODY_PATHS = FieldPaths({MESSAGES: "items"})


class Conversations:
    """Handles the endpoints.

    Args:
        service: checks the number of items in a request.
        store: keeps conversations.
        locks: the conversations that must not be changed.
    """

    def __init__(self, service: Service, store: ObjectStore, locks: ConversationLocks) -> None:
        self._service = service
        self._store = store
        self._locks = locks

    async def create(self, request: web.Request) -> web.Response:
        body = await read_json(request, CreateConversation)
        items = await self._check_items(body.items or [])
        id_ = new_id(CONVERSATION_PREFIX)
        conversation = Conversation(id=id_, created_at=int(time.time()), metadata=body.metadata or {})
        encoded = msgspec.json.encode(conversation)
        encoded_items = await convert(encode_items, items)
        self._scope(request).put(StoredObject(id_, encoded, encoded_items))
        return _json_bytes(encoded)

    async def show(self, request: web.Request) -> web.Response:
        return _json_bytes((await self._find(request)).body)

    async def update(self, request: web.Request) -> web.Response:
        body = await read_json(request, UpdateConversation)
        stored = await self._find_unlocked(request)
        conversation = msgspec.structs.replace(
            msgspec.json.decode(stored.body, type=Conversation), metadata=body.metadata or {}
        )
        encoded = msgspec.json.encode(conversation)
        self._scope(request).put(replace(stored, body=encoded))
        return _json_bytes(encoded)

    async def delete(self, request: web.Request) -> web.Response:
        stored = await self._find_unlocked(request)
        await self._scope(request).delete(stored.id)
        return json_response(DeletedConversation(id=stored.id))

    async def add_items(self, request: web.Request) -> web.Response:
        items = await self._check_items((await read_json(request, CreateItems)).items)
        encoded_items = await convert(encode_items, items)
        stored = await self._find_unlocked(request)
        self._scope(request).put(replace(stored, input=(*stored.items, *encoded_items)))
        return json_response(list_of(items))

    async def list_items(self, request: web.Request) -> web.Response:
        return json_response(page_of(request, decode_items((await self._find(request)).items)))

    async def show_item(self, request: web.Request) -> web.Response:
        stored = await self._find(request)
        return _json_bytes(stored.items[_index_of(request, stored)])

    async def delete_item(self, request: web.Request) -> web.Response:
        stored = await self._find_unlocked(request)
        index = _index_of(request, stored)
        self._scope(request).put(replace(stored, input=(*stored.items[:index], *stored.items[index + 1 :])))
        return _json_bytes(stored.body)

    async def _check_items(self, items: list[Item]) -> list[Item]:
        """Complete and check the items of a request.

        Raises:
            InvalidRequest: there are too many, or one is invalid.
            UnsupportedParameter: an item uses an unsupported feature.
        """
        with _BODY_PATHS.named():
            self._service.check_lengths({MESSAGES: items})
        return await convert(_complete_items, items)

    def _scope(self, request: web.Request) -> Scope:
        return Scope(self._store, request[CONTEXT].owner)

    async def _find(self, request: web.Request) -> StoredObject:
        return await find_conversation(request.match_info["conversation"], self._scope(request))

    async def _find_unlocked(self, request: web.Request) -> StoredObject:
        """Find a conversation, to change it before anything else runs."""
        stored = await self._find(request)
        self._locks.check(stored.id)
        return stored


def _complete_items(items: list[Item]) -> list[Item]:
    """Complete items, and check that a response can use them.

    Raises:
        InvalidRequest: an item is invalid.
        UnsupportedParameter: an item uses an unsupported feature.
    """
    check_depth(items)
    completed = input_items(items)
    parse_items(completed, [f"items[{index}]" for index in range(len(completed))], None, ImageCollector())
    return completed


def _index_of(request: web.Request, stored: StoredObject) -> int:
    id_ = request.match_info["item"]
    for index, item in enumerate(decode_items(stored.items)):
        if item.get("id") == id_:
            return index
    raise NotFound(f'no item "{excerpt(id_)}" is in the conversation')


def _json_bytes(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
