"""The control streams of other hosts that lead groups, and the ranks that this host runs for them."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from osaurusd.errors import Busy, HostLost, InvalidRequest, ModelUnloaded, OsaurusError, ShuttingDown
from osaurusd.groups import stream
from osaurusd.groups.rank import FLUSH_SECONDS, Rank, RankContext
from osaurusd.groups.stream import ControlStream, Socket
from osaurusd.hosts.registry import Host
from osaurusd.hosts.server import peer, websocket
from osaurusd.http.routes import Route
from osaurusd.log import get_logger
from osaurusd.wire import groups as wire
from osaurusd.wire.admin import WorkerInfo

log = get_logger(__name__)


class RankService:
    """Runs ranks for other hosts; each ends with its control stream.

    Args:
        context: what the ranks share.
        stream_timeout: returns after how many seconds of silence a leader is lost.
    """

    def __init__(self, context: RankContext, stream_timeout: Callable[[], float]) -> None:
        self._context = context
        self._stream_timeout = stream_timeout
        # A leader has one rank of a group on this host.
        self._ranks: dict[tuple[str, str], Rank] = {}
        self._closing = False

    @property
    def routes(self) -> list[Route]:
        return [Route("GET", wire.RANKS_PATH, self.serve)]

    def workers(self) -> list[WorkerInfo]:
        """Describe the ranks that hold memory."""
        return [info for rank in self._ranks.values() if (info := rank.info) is not None]

    def owners(self, folder: Path) -> list[str]:
        """Return the hosts whose ranks use the files in a folder."""
        return [rank.owner for rank in self._ranks.values() if rank.folder == folder]

    async def end_users(self, folder: Path) -> None:
        """End the ranks that use the files in a folder."""
        await _end(
            (rank for rank in self._ranks.values() if rank.folder == folder),
            ModelUnloaded("the host removes its copy of the model"),
        )

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Run one rank for the host that sent the request, until its stream ends."""
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        async with websocket(request) as socket:
            try:
                await self.run(socket, peer(request), address)
            finally:
                await stream.close(socket)
        return socket

    async def run(self, socket: Socket, owner: Host, address: str) -> None:
        """Run one rank for `owner` over an open stream.

        Args:
            socket: the stream.
            owner: the leader.
            address: the address of this host on the connection.
        """
        control = ControlStream(socket, wire.TO_FOLLOWER, timeout=self._stream_timeout(), clock=self._context.clock)
        begun: asyncio.Future[Rank | None] = asyncio.get_running_loop().create_future()

        async def handle(message: wire.ToFollower | bytes) -> None:
            if not begun.done():
                begun.set_result(self._begin(message, owner, address, control))
            elif (rank := begun.result()) is not None:
                rank.handle(message)

        reading = asyncio.create_task(control.run(handle))
        try:
            waits: list[asyncio.Future[Any]] = [reading, begun]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            rank = begun.result() if begun.done() else None
            if rank is not None:
                waits = [reading, rank.task]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    rank.stop(HostLost(f"the connection to the leader was lost: {reading.result()}"))
                    await asyncio.wait({rank.task})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_first(reading, control.flush()), FLUSH_SECONDS)
        finally:
            reading.cancel()
            if begun.done() and (rank := begun.result()) is not None:
                rank.stop(ShuttingDown("the daemon is shutting down"))

    def stop_accepting(self) -> None:
        """Refuse new ranks."""
        self._closing = True

    async def close(self) -> None:
        """End all ranks, and refuse new ones."""
        self.stop_accepting()
        await _end(self._ranks.values(), ShuttingDown("the daemon of the host is shutting down"))

    def _begin(
        self, message: wire.ToFollower | bytes, owner: Host, address: str, control: ControlStream[wire.ToFollower]
    ) -> Rank | None:
        """Start a rank; None if the request is refused."""
        refusal: OsaurusError | None = None
        if not isinstance(message, wire.StartRank):
            refusal = InvalidRequest("the first message must start a rank")
        elif self._closing:
            refusal = ShuttingDown("the daemon of the host is shutting down")
        else:
            key = owner.fingerprint, message.group
            predecessor = self._ranks.get(key)
            if predecessor is None or predecessor.epoch < message.epoch:
                rank = Rank(message, owner, address, control, self._context, predecessor)
                self._ranks[key] = rank
                rank.task.add_done_callback(lambda _: self._forget(key, rank))
                return rank
            refusal = Busy(
                f"the host runs epoch {predecessor.epoch} of this group, which epoch {message.epoch} precedes"
            )
        control.send(wire.RankFailed(code=refusal.code, message=refusal.message))
        return None

    def _forget(self, key: tuple[str, str], rank: Rank) -> None:
        if self._ranks.get(key) is rank:
            del self._ranks[key]


async def _end(ranks: Iterable[Rank], reason: OsaurusError) -> None:
    """Stop ranks, and wait until their processes have exited."""
    ending = list(ranks)
    for rank in ending:
        rank.stop(reason)
    if ending:
        await asyncio.wait({rank.task for rank in ending})


async def _first(*works: "asyncio.Task[str] | Coroutine[Any, Any, None]") -> None:
    """Wait until one of these is done."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        tasks[-1].cancel()
