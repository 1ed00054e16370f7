"""The control stream between two daemons: typed messages and frames over a WebSocket, and the detection of its loss."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from aiohttp import WSMessage, WSMsgType

from osaurusd.rpc.watchdog import Clock, Watchdog, sleep
from osaurusd.wire.groups import Ping, Pong, StreamMessage

MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""A peer that leaves more than this unread is lost."""

PINGS_PER_TIMEOUT = 6
"""After a short cut, TCP sends again only after up to twice the length of the cut: pings must be frequent."""

CLOSE_SECONDS = 2.0
"""How long to wait for the peer to confirm that the stream is closed."""

T = TypeVar("T")

Handler = Callable[[Any], Awaitable[None]]


class Socket(Protocol):
    """A WebSocket of aiohttp, on either side."""

    async def receive(self) -> WSMessage: ...

    async def send_str(self, data: str) -> None: ...

    async def send_bytes(self, data: bytes) -> None: ...


class ControlStream(Generic[T]):
    """One side of a control stream. Sending never waits.

    Args:
        socket: the WebSocket.
        decoder: decodes the text messages of the peer.
        timeout: a peer from which nothing arrives for this many seconds is lost.
        clock: measures that time.

    Attributes:
        round_trip_seconds: how long the peer took to answer the last ping; None before that.
        sent_bytes: the size of all messages sent.
    """

    def __init__(self, socket: Socket, decoder: msgspec.json.Decoder[T], *, timeout: float, clock: Clock) -> None:
        self.round_trip_seconds: float | None = None
        self.sent_bytes = 0
        self._socket = socket
        self._decoder = decoder
        self._timeout = timeout
        self._clock = clock
        self._watchdog = Watchdog(timeout, clock)
        self._unsent: deque[str | bytes] = deque()
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._overflow = asyncio.Event()

    def send(self, message: StreamMessage) -> None:
        """Queue a message."""
        self._queue(msgspec.json.encode(message).decode())

    def send_frames(self, frames: bytes) -> None:
        """Queue frames of a worker."""
        self._queue(frames)

    async def flush(self) -> None:
        """Wait until everything is sent. Only while `run` runs."""
        await self._sent.wait()

    async def run(self, handle: Handler) -> str:
        """Receive until the stream ends; return the reason.

        Args:
            handle: gets each typed message and, as bytes, each binary message; the next one waits for it.
        """
        self._watchdog.arm()
        waits = [
            asyncio.create_task(work)
            for work in (self._receive(handle), self._write(), self._ping(), self._silence(), self._unread())
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return next(task.result() for task in waits if task in done)
        finally:
            self._watchdog.disarm()
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _queue(self, message: str | bytes) -> None:
        self._unsent_bytes += len(message)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._overflow.set()
            return
        self._unsent.append(message)
        self._sent.clear()
        self._wake.set()

    async def _receive(self, handle: Handler) -> str:
        while True:
            received = await self._socket.receive()
            self._watchdog.touch()
            if received.type is WSMsgType.BINARY:
                await handle(received.data)
            elif received.type is WSMsgType.TEXT:
                try:
                    message = self._decoder.decode(received.data)
                except (msgspec.MsgspecError, RecursionError) as error:
                    return f"it sent an invalid message: {error}"
                await self._dispatch(message, handle)
            else:
                return "the connection was closed"

    async def _dispatch(self, message: Any, handle: Handler) -> None:
        if isinstance(message, Ping):
            self.send(Pong(at=message.at))
        elif isinstance(message, Pong):
            self.round_trip_seconds = max(self._clock.time() - message.at, 0.0)
        else:
            await handle(message)

    async def _write(self) -> str:
        while True:
            await self._wake.wait()
            while self._unsent:
                message = self._unsent.popleft()
                try:
                    if isinstance(message, str):
                        await self._socket.send_str(message)
                    else:
                        await self._socket.send_bytes(message)
                except (ConnectionError, RuntimeError) as error:
                    return f"the connection was closed ({error})"
                self.sent_bytes += len(message)
                self._unsent_bytes -= len(message)
            self._wake.clear()
            self._sent.set()

    async def _ping(self) -> str:
        while True:
            self.send(Ping(at=self._clock.time()))
            await sleep(self._clock, self._timeout / PINGS_PER_TIMEOUT)

    async def _silence(self) -> str:
        await self._watchdog.hung.wait()
        return f"nothing arrived for {self._timeout:g} s (`distributed.stream_timeout_seconds`)"

    async def _unread(self) -> str:
        await self._overflow.wait()
        return f"it left more than {MAX_UNSENT_BYTES} bytes unread"


async def close(socket: Any) -> None:
    """Close a WebSocket, without waiting long for a peer that is not reachable."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close()
