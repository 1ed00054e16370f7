"""Creates responses: finds the model and what the request continues, and keeps what later requests may continue."""

import contextlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from osaurusd.errors import Busy, InvalidRequest, NotFound, PreviousResponseNotFound
from osaurusd.http.errors import excerpt
from osaurusd.inference.limits import MESSAGES, MODEL
from osaurusd.inference.service import Service
from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai.errors import FieldPaths
from osaurusd.protocols.openai.responses.items import RESPONSE_PREFIX
from osaurusd.protocols.openai.responses.request import ParsedRequest, parse_request
from osaurusd.protocols.openai.responses.run import ResponseRun, RunOptions
from osaurusd.protocols.openai.responses.store import Scope, StoredObject, decode_items
from osaurusd.protocols.openai.responses.types import ResponseRequest

_BODY_PATHS = FieldPaths({MODEL: "model", MESSAGES: "input"})
"""The fields of a request that is not converted yet."""

_ADDED = ("completed", "incomplete")
"""The statuses of responses that are added to their conversation."""


class ConversationLocks:
    """The conversations that a response will extend. Until it is final, nothing else may change them."""

    def __init__(self) -> None:
        self._locked: set[str] = set()

    def check(self, id_: str) -> None:
        """Check that a conversation can be changed.

        Raises:
            Busy: a response will extend it.
        """
        if id_ in self._locked:
            raise Busy(
                f'`conversation`: a response to "{excerpt(id_)}" is in progress; retry when it is final',
                param="conversation",
            )

    @contextlib.contextmanager
    def hold(self, id_: str) -> Iterator[None]:
        """Lock a conversation while the block runs.

        Raises:
            Busy: it is locked.
        """
        self.check(id_)
        self._locked.add(id_)
        try:
            yield
        finally:
            self._locked.remove(id_)


class ResponseCreator:
    """Creates responses.

    Args:
        service: serves generation requests.
        locks: the conversations that are being extended.
    """

    def __init__(self, service: Service, locks: ConversationLocks) -> None:
        self._service = service
        self._locks = locks

    async def create(
        self,
        body: ResponseRequest,
        scope: Scope,
        held: contextlib.ExitStack,
        event_fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> ResponseRun:
        """Create a response that is not started yet.

        Args:
            body: the request.
            scope: what the client has stored.
            held: locks the conversation until it is closed, which is due once the response is final.
            event_fields: added to every event.
        """
        continued = await _find_continued(body, scope)
        if continued is not None and body.conversation is not None:
            held.enter_context(self._locks.hold(continued.id))
        record, parsed = await self._parse(body, continued)
        extends, without_output = body.conversation is not None, body.without_output

        def keep(run: ResponseRun) -> None:
            stored = run.stored
            if run.response.store:
                scope.put(stored)
            if continued is not None and extends and run.response.status in _ADDED:
                scope.put(replace(continued, input=stored.items))

        history = () if continued is None else continued.items
        options = RunOptions(event_fields, without_output=without_output)
        return ResponseRun(self._service, record, parsed, history, keep, options)

    async def count_input_tokens(self, body: ResponseRequest, scope: Scope) -> int:
        """Return the number of tokens of a prompt."""
        record, parsed = await self._parse(body, await _find_continued(body, scope))
        with FieldPaths(parsed.paths).named():
            return await self._service.count_prompt_tokens(record, parsed.generation, parsed.images)

    async def _parse(self, body: ResponseRequest, continued: StoredObject | None) -> tuple[ModelRecord, ParsedRequest]:
        with _BODY_PATHS.named():
            record = await self._service.find(body.model)
            items = None if isinstance(body.input, str) else body.input
            self._service.check_lengths({MESSAGES: items})
        history = [] if continued is None else decode_items(continued.items)
        return record, parse_request(body, history, self._service.defaults(record), record.name)


async def _find_continued(body: ResponseRequest, scope: Scope) -> StoredObject | None:
    """Return the response or the conversation that a request continues.

    Raises:
        InvalidRequest: the request names both.
        PreviousResponseNotFound, NotFound: it is not stored.
    """
    id_, conversation = body.previous_response_id, body.conversation_id
    if conversation is not None:
        if id_ is not None:
            raise InvalidRequest(
                "`conversation`: cannot be combined with `previous_response_id`; send one of them", param="conversation"
            )
        return await find_conversation(conversation, scope)
    if id_ is None:
        return None
    stored = await scope.get(id_)
    if stored is None or not is_response(stored):
        raise PreviousResponseNotFound(
            f'`previous_response_id`: no response "{excerpt(id_)}" is stored; send the whole conversation as `input`',
            param="previous_response_id",
        )
    return stored


async def find_conversation(id_: str, scope: Scope) -> StoredObject:
    """Return a conversation.

    Raises:
        NotFound: it is not stored.
    """
    stored = await scope.get(id_)
    if stored is None or is_response(stored):
        raise NotFound(f'`conversation`: no conversation "{excerpt(id_)}" is stored', param="conversation")
    return stored


def is_response(stored: StoredObject) -> bool:
    """Whether a stored object is a response, and not a conversation."""
    return stored.id.startswith(f"{RESPONSE_PREFIX}_")
