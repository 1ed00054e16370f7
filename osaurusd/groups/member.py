"""A rank on another host, as the leader sees it: its control stream, its progress and its loss."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
from aiohttp import ClientError

from osaurusd.config.distributed import Distributed
from osaurusd.errors import HostLost, OsaurusError, from_code
from osaurusd.groups import stream
from osaurusd.groups.stream import ControlStream
from osaurusd.hosts.registry import Host
from osaurusd.log import get_logger
from osaurusd.rpc import framing, messages
from osaurusd.rpc.watchdog import Clock, Watchdog
from osaurusd.wire import groups as wire
from osaurusd.wire.groups import RankInfo, RankState

log = get_logger(__name__)


class Timeouts(msgspec.Struct, frozen=True):
    """Limits in seconds.

    Attributes:
        start: from the start until all ranks are ready, without the time in which files are received.
        stream: a host from which nothing arrives for this long is lost.
        hang: a rank that has a plan and makes no progress for this long is lost.
    """

    start: float = 120.0
    stream: float = 30.0
    hang: float = 60.0

    @classmethod
    def from_config(cls, config: Distributed) -> "Timeouts":
        return cls(config.start_timeout_seconds, config.stream_timeout_seconds, config.hang_timeout_seconds)


class HostClient(Protocol):
    """Connects to paired hosts."""

    def websocket(self, host: Host, path: str) -> AbstractAsyncContextManager[Any]: ...


class MemberListener(Protocol):
    """Observes a member: the group."""

    def member_progressed(self) -> None:
        """The host has received files, or the rank has loaded weights."""

    def member_failed(self, member: "Member", error: OsaurusError) -> None:
        """The rank is lost, or cannot be started. Called once, and not after `stop`."""


class Member:
    """One rank on another host.

    Args:
        host: the host.
        start: the request for the rank.
        client: connects to the host.
        listener: observes the rank.
        timeouts: limits.
        clock: measures them.

    Attributes:
        state: the rank's state.
        address: this host's address on the connection, once `connected` is set.
        ready: the rank's reply, once it is ready to connect.
        loaded: the rank's report, once it has loaded its part of the model.
        suspended: whether the rank's process is suspended.
        hung: set once the rank makes no progress although it has plans.
        task: runs until the stream has ended.
    """

    def __init__(
        self,
        host: Host,
        start: wire.StartRank,
        client: HostClient,
        listener: MemberListener,
        timeouts: Timeouts,
        clock: Clock,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.host = host
        self.rank = start.rank
        self.state = RankState.CONTACTING
        self.address = ""
        self.connected = asyncio.Event()
        self.ready: asyncio.Future[wire.RankReady] = loop.create_future()
        self.loaded: asyncio.Future[messages.Loaded] = loop.create_future()
        self.suspended = False
        self._start = start
        self._client = client
        self._listener = listener
        self._timeouts = timeouts
        self._clock = clock
        self._frames = framing.FrameDecoder(messages.FROM_WORKER)
        self._stream: ControlStream[wire.ToLeader] | None = None
        self._watchdog = Watchdog(timeouts.hang, clock)
        self._sent = self._executed = 0
        self._memory_bytes = 0
        self._lease_bytes = start.needs_bytes
        self._stopping = False
        self._failed = False
        self.task = asyncio.create_task(self._run())

    @property
    def hung(self) -> asyncio.Event:
        return self._watchdog.hung

    @property
    def behind(self) -> int:
        """The number of plans that the rank has not executed yet."""
        return max(self._sent - self._executed, 0)

    @property
    def info(self) -> RankInfo:
        return RankInfo(
            rank=self.rank,
            host=self.host.name,
            state=self.state,
            needs_bytes=self._lease_bytes,
            memory_bytes=self._memory_bytes,
            plan=self._executed,
            behind=self.behind,
            round_trip_seconds=self._stream.round_trip_seconds if self._stream else None,
            sent_bytes=self._stream.sent_bytes if self._stream else 0,
        )

    def connect(self, message: wire.ConnectRank) -> None:
        """Make the rank connect to the others and load its part of the model."""
        self.state = RankState.LOADING
        if self._stream is not None:
            self._stream.send(message)

    def send_plan(self, frame: bytes) -> None:
        """Pass on a plan."""
        if not self.behind:
            self._watchdog.arm()
        self._sent += 1
        if self._stream is not None:
            self._stream.send_frames(frame)

    def stop(self) -> None:
        """Stop the rank. The stream ends once its process has exited."""
        if self._stopping:
            return
        self._stopping = True
        self._watchdog.disarm()
        self.state = RankState.STOPPING
        if self._stream is None:
            self.task.cancel()
        else:
            self._stream.send(wire.StopRank())

    async def wait_stopped(self, seconds: float) -> None:
        """Wait until the host confirms that the rank has exited; give up after `seconds`."""
        await asyncio.wait({self.task}, timeout=seconds)
        if not self.task.done():
            log.warning("host did not confirm that a rank has exited", host=self.host.name, rank=self.rank)
            self.task.cancel()
            await asyncio.wait({self.task})

    async def _run(self) -> None:
        name = self.host.name
        try:
            async with self._client.websocket(self.host, wire.RANKS_PATH) as socket:
                self.address = socket.get_extra_info("sockname")[0]
                self._stream = ControlStream(socket, wire.TO_LEADER, timeout=self._timeouts.stream, clock=self._clock)
                self._stream.send(self._start)
                self.connected.set()
                try:
                    reason = await self._stream.run(self._handle)
                finally:
                    await stream.close(socket)
            self._fail(HostLost(f'the connection to host "{name}" was lost: {reason}'))
        except OsaurusError as error:
            self._fail(error)
        except framing.FrameError as error:
            self._fail(HostLost(f'host "{name}" sent invalid data: {error}'))
        except (ClientError, OSError) as error:
            self._fail(HostLost(f'cannot connect to host "{name}": {error}'))
        except Exception as error:
            log.exception("control stream failed unexpectedly", host=name)
            self._fail(HostLost(f'the connection to host "{name}" failed unexpectedly: {type(error).__name__}'))
        finally:
            self._watchdog.disarm()

    async def _handle(self, message: wire.ToLeader | bytes) -> None:
        name = self.host.name
        match message:
            case bytes():
                self._handle_frames(message)
            case wire.RankProgress():
                self.state = RankState(message.stage)
                if message.done:
                    self._listener.member_progressed()
            case wire.RankReady():
                if not self.ready.done():
                    self.state, self._lease_bytes = RankState.WAITING, message.lease_bytes
                    self.ready.set_result(message)
            case wire.RankStatus():
                self._memory_bytes, self.suspended = message.memory_bytes, message.suspended
            case wire.RankFailed():
                self._fail(from_code(message.code, f'host "{name}": {message.message}'))
            case wire.RankExited():
                self._fail(HostLost(f'rank {self.rank} on host "{name}" failed: {message.message}'))

    def _handle_frames(self, data: bytes) -> None:
        self._frames.feed(data)
        while (frame := self._frames.next_frame()) is not None:
            self._watchdog.touch()
            self._listener.member_progressed()
            if isinstance(frame, messages.Pulse):
                self._executed = max(self._executed, frame.plan)
                if not self.behind:
                    self._watchdog.disarm()
            elif isinstance(frame, messages.Loaded) and not self.loaded.done():
                self.state = RankState.READY
                self.loaded.set_result(frame)

    def _fail(self, error: OsaurusError) -> None:
        if self._stopping or self._failed:
            return
        self._failed = True
        self.state = RankState.LOST
        self._watchdog.disarm()
        self._listener.member_failed(self, error)
