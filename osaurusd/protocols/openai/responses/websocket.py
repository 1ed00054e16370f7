"""Responses over a WebSocket: each message of the client creates one, and each of its events is a message."""

import asyncio
import contextlib
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Literal

import msgspec
from aiohttp import web

from osaurusd.buffered_bytes import Reservation
from osaurusd.errors import InvalidRequest, OsaurusError, TooManyRequests
from osaurusd.http.admission import Deadline
from osaurusd.http.errors import as_osaurus_error, error_body, excerpt, status_of
from osaurusd.http.json import decode_body
from osaurusd.http.request import CONTEXT, RequestContext
from osaurusd.http.websocket import WebSocket, is_upgrade
from osaurusd.protocols.openai.responses.creation import ResponseCreator
from osaurusd.protocols.openai.responses.run import ResponseRun
from osaurusd.protocols.openai.responses.store import MemoryStore, ObjectStore, Scope, StoredObject
from osaurusd.protocols.openai.responses.types import CreateEvent
from osaurusd.wire.errors import ErrorBody

MAX_RESPONSES = 16
"""Responses of one connection that are generated or wait for the one before them."""

MAX_MESSAGES = 2 * MAX_RESPONSES
"""Messages of one connection that are being answered; further ones are not read."""

MAX_LANES = 32
"""Lanes of one connection."""


class SocketError(msgspec.Struct, frozen=True, kw_only=True):
    """The event of an error that precedes a response, or that ends it from outside."""

    type: Literal["error"] = "error"
    status: int
    error: ErrorBody
    stream_id: str | msgspec.UnsetType = msgspec.UNSET


class ConnectionScope(Scope):
    """What one connection may continue: what its client has stored, and the last response of each of its lanes.

    The last response is kept even if the request says not to store it: for this connection only, until it closes.

    Args:
        store: keeps the objects of all clients.
        owner: the client.
        memory: keeps the responses that are not stored.
    """

    def __init__(self, store: ObjectStore, owner: str, memory: MemoryStore) -> None:
        super().__init__(store, owner)
        self._connection = Scope(memory, f"websocket {uuid.uuid4().hex}")
        self._last: dict[str | None, str] = {}

    async def get(self, id_: str) -> StoredObject | None:
        """Return an object, and keep it longer."""
        return await self._connection.get(id_) or await super().get(id_)

    async def remember(self, lane: str | None, run: ResponseRun) -> None:
        """Keep the last response of a lane instead of the one before."""
        if lane in self._last:
            await self.forget(self._last[lane])
        if not run.response.store:
            self._last[lane] = run.response.id
            self._connection.put(run.stored)

    async def forget(self, id_: str | None) -> None:
        """Drop a response that is only kept for this connection."""
        for lane, last in [*self._last.items()]:
            if last == id_:
                del self._last[lane]
                await self._connection.delete(last)

    async def close(self) -> None:
        """Drop everything that is only kept for this connection."""
        for id_ in [*self._last.values()]:
            await self.forget(id_)


class ResponseSockets:
    """Serves responses over WebSockets.

    Args:
        creator: creates responses.
        store: keeps responses and conversations.
        memory: keeps what clients may continue only over the same connection.
    """

    def __init__(self, creator: ResponseCreator, store: ObjectStore, memory: MemoryStore) -> None:
        self._creator = creator
        self._store = store
        self._memory = memory

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection.

        Raises:
            HTTPMethodNotAllowed: the request does not ask for a WebSocket.
            OsaurusError: the daemon accepts no requests.
        """
        if not is_upgrade(request):
            raise web.HTTPMethodNotAllowed(request.method, ["POST"])
        request[CONTEXT].admission.check_open()
        scope = ConnectionScope(self._store, request[CONTEXT].owner, self._memory)
        session = _Session(self._creator, scope, request[CONTEXT], WebSocket(request))
        try:
            return await session.run()
        finally:
            await scope.close()


class _Session:
    """One connection. Responses of one lane, which `stream_id` names, are generated one after another."""

    def __init__(
        self, creator: ResponseCreator, scope: ConnectionScope, context: RequestContext, socket: WebSocket
    ) -> None:
        self._creator = creator
        self._scope = scope
        self._context = context
        self._socket = socket
        self._lanes: defaultdict[str | None, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._decoding = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> web.StreamResponse:
        """Serve the messages of the client until one side closes the connection."""
        try:
            async with contextlib.aclosing(self._socket.messages()) as messages:
                async for message in messages:
                    if len(self._tasks) >= MAX_MESSAGES:
                        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                    task = asyncio.create_task(self._handle(message, self._socket.hold()))
                    # Otherwise it stays in memory until the next one arrives.
                    del message
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        return self._socket.response

    async def _handle(self, message: bytes, held: contextlib.ExitStack) -> None:
        """Answer one message with the events of a response or with an error."""
        lane = previous = None
        reservation = Reservation(self._context.admission.buffered)
        held.callback(reservation.release)
        with held, reservation.used(), contextlib.suppress(ConnectionError):
            try:
                reservation.add(len(message))
                async with self._decoding:  # one after another, since the messages of a lane are in order
                    event = await decode_body(message, CreateEvent)
                del message
                lane, previous = event.stream_id, event.previous_response_id
                self._check(event)
                async with self._lanes[lane], self._admit() as (deadline, locks):
                    fields = {} if lane is None else {"stream_id": lane}
                    run = await self._creator.create(event, self._scope, locks, fields)
                    del event  # it contains the text of images
                    async with contextlib.aclosing(deadline.items(run.stream())) as events:
                        async for _, data in events:
                            # The client may continue a response as soon as it has the last event.
                            await self._keep(run, lane, previous)
                            await self._socket.send(data)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001  the boundary: `as_osaurus_error` logs what is unexpected
                await self._scope.forget(previous)
                await self._socket.send(_render_error(as_osaurus_error(error), lane))

    def _check(self, event: CreateEvent) -> None:
        self._context.check_key()
        # Only now: a message that waits for the one before it in its lane was accepted when it arrived.
        self._context.admission.check_open()
        if event.type != "response.create":
            raise InvalidRequest(f'`type`: must be `response.create`, not "{excerpt(event.type)}"', param="type")
        if event.background:
            raise InvalidRequest("`background`: is not supported over a WebSocket; send a `POST`", param="background")
        if len(self._tasks) > MAX_RESPONSES:
            raise TooManyRequests(
                f"{MAX_RESPONSES} responses of this connection are in progress or waiting; retry later"
            )
        if event.stream_id not in self._lanes and len(self._lanes) >= MAX_LANES:
            raise InvalidRequest(
                f"`stream_id`: a connection can have at most {MAX_LANES} of them; open another one", param="stream_id"
            )

    @contextlib.asynccontextmanager
    async def _admit(self) -> AsyncGenerator[tuple[Deadline, contextlib.ExitStack]]:
        """Count a response as a request while the block runs. Yields its deadline, and what holds its locks."""
        admission = self._context.admission
        deadline = Deadline(admission.limits.request_seconds, asyncio.get_running_loop().time())
        with admission.admit(), contextlib.ExitStack() as locks:
            async with deadline.enforce():
                yield deadline, locks

    async def _keep(self, run: ResponseRun, lane: str | None, previous: str | None) -> None:
        """Once a response is final, let the connection continue it."""
        match run.response.status:
            case "failed":
                await self._scope.forget(previous)
            case "completed" | "incomplete":
                await self._scope.remember(lane, run)


def _render_error(error: OsaurusError, lane: str | None) -> bytes:
    stream_id = msgspec.UNSET if lane is None else lane
    event = SocketError(status=status_of(error), error=error_body(error), stream_id=stream_id)
    return msgspec.json.encode(event)
