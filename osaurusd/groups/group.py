"""The leader's side of a group: one start of all ranks, the relay of plans, and the detection of lost ranks."""

import asyncio
import secrets
import signal
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import msgspec

from osaurusd import addresses
from osaurusd.errors import HostLost, LoadFailed, OsaurusError
from osaurusd.events import EventBus
from osaurusd.groups.member import Member, Timeouts
from osaurusd.log import get_logger
from osaurusd.rpc import framing, messages, worker
from osaurusd.rpc.client import WorkerListener
from osaurusd.rpc.process import Launch, WorkerProcess, spawn
from osaurusd.rpc.watchdog import Clock, Timer, Watchdog
from osaurusd.rpc.worker import Worker
from osaurusd.wire.groups import ConnectRank, RankInfo, RankState
from osaurusd.wire.placement import Split
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

SECRET_BYTES = 32

RANK_0_GRACE_SECONDS = 5.0
"""How much longer than other ranks rank 0 may make no progress, so that the error names the rank that it waits for."""

SIGNAL_MEANINGS = {signal.SIGALRM: "not all ranks were connected within `distributed.start_timeout_seconds`"}
"""Ranks limit the time in which they connect: MLX would wait for ever."""

SETTLE_SECONDS = 2.0
"""When a rank fails because it lost another one, how long to wait for the report of that one."""

PEER_LOST = ("[ring]", "connection to a peer")
"""Parts of the output of a rank that failed because another one was lost."""

STOP_MARGIN_SECONDS = 5.0
"""How long a host gets to confirm the exit of a rank, besides the two grace periods of its process."""


class GroupSpec(msgspec.Struct, frozen=True):
    """What to start.

    Attributes:
        name: the model.
        epoch: the number of this start.
        split: how the model is divided.
        layers: for a pipeline, the number of layers of each rank, rank 0 first.
        link_address: the address of this host for the other ranks; empty for that of the control connection.
        rdma_devices: the RDMA device of each rank; empty for TCP.
    """

    name: str
    epoch: int
    split: Split
    layers: tuple[int, ...] = ()
    link_address: str = ""
    rdma_devices: tuple[str, ...] = ()


class Group:
    """All ranks of a model, from their start until they have exited. Implements `Companions` and `MemberListener`.

    Args:
        spec: what to start.
        timeouts: limits.
        events: receives the events of ranks.
        clock: measures times.
    """

    def __init__(self, spec: GroupSpec, timeouts: Timeouts, events: EventBus, clock: Clock) -> None:
        self.members: Sequence[Member] = ()
        self._spec = spec
        self._timeouts = timeouts
        self._events = events
        self._clock = clock
        self._plans = 0
        self._worker: Worker | None = None
        self._state = RankState.STARTING
        self._needs_bytes = 0
        # Why the group ends; a result, because not every start awaits it.
        self._end_reason: asyncio.Future[OsaurusError] = asyncio.get_running_loop().create_future()
        self._settling: Timer | None = None
        self._starting = Watchdog(timeouts.start, clock)
        self._loading: Watchdog | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._ending: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_seconds = 0.0
        self._ended = asyncio.Event()

    def ranks(self) -> list[RankInfo]:
        """Describe the ranks, in order."""
        memory = 0
        if self._worker is not None:
            memory = self._worker.client.stats.active_bytes + self._worker.client.stats.cache_bytes
        own = RankInfo(
            rank=0,
            host=None,
            state=self._state,
            needs_bytes=self._needs_bytes,
            memory_bytes=memory,
            plan=self._plans,
        )
        return [own, *(member.info for member in self.members)]

    async def start(
        self, members: Sequence[Member], request: messages.Load, launch: Launch, listener: WorkerListener
    ) -> Worker:
        """Start rank 0, connect all ranks once they are ready, and load the model.

        Args:
            members: the other ranks, in order.
            request: loads the model in one process.
            launch: how to start rank 0.
            listener: observes rank 0.

        Raises:
            OsaurusError: a rank cannot be started; the others are being stopped.
        """
        self.members = members
        self._needs_bytes = request.memory_limit_bytes or 0
        self._stop_seconds = 2 * launch.stop_grace + STOP_MARGIN_SECONDS
        started_at = self._clock.time()
        process: WorkerProcess | None = None
        try:
            process = await spawn(launch, self._clock)
            process.reader.filter = framing.PlanDiverter(self._relay)
            loaded = await self._unless_failed(self._load(process, request))
        except BaseException as error:
            self.stop()
            if process is not None:
                process.kill()
                await asyncio.shield(process.exited)
            if isinstance(error, asyncio.CancelledError):
                await self.wait_stopped()
            raise
        self._state = RankState.READY
        self._worker = Worker(process, loaded, worker.measure_phases(process, started_at), listener, self)
        self._watch(process)
        return self._worker

    # Companions of rank 0

    def stop(self) -> None:
        """Stop the other ranks, in the background."""
        if self._stopping is None:
            self._state = RankState.STOPPING
            for member in self.members:
                member.stop()
            self._stopping = asyncio.create_task(self._wait_stopped())

    async def worker_exited(self, error: OsaurusError, *, stopped: bool) -> OsaurusError:
        """Stop the other ranks; wait for their exit unless one was lost: its host may not be reachable."""
        if not stopped:
            self._report(error)
            error = await asyncio.shield(self._end_reason)
        self.stop()
        if stopped and not self._end_reason.done():
            await self.wait_stopped()
        return error

    async def wait_stopped(self) -> None:
        """Wait until all ranks have exited, or their hosts cannot confirm it."""
        await self._ended.wait()

    # Listener of the members

    def member_progressed(self) -> None:
        self._starting.touch()
        if self._loading is not None:
            self._loading.touch()

    def member_failed(self, member: Member, error: OsaurusError) -> None:
        log.warning("rank lost", model=self._spec.name, host=member.host.name, rank=member.rank, reason=error.message)
        self._events.publish(
            EventKind.RANK_LOST, self._spec.name, host=member.host.name, rank=member.rank, reason=error.message
        )
        self._report(error)

    # Start

    async def _unless_failed(self, work: Coroutine[Any, Any, messages.Loaded]) -> messages.Loaded:
        loading = asyncio.create_task(work)
        try:
            waits: list[asyncio.Future[Any]] = [loading, self._end_reason]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._end_reason.done():
                raise self._end_reason.result()
            return await loading
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _load(self, process: WorkerProcess, request: messages.Load) -> messages.Loaded:
        try:
            connect = await self._starting.guard(self._prepare(process, request))
            if connect is None:
                raise self._not_ready()
            self._state = RankState.LOADING
            for member in self.members:
                member.connect(connect)
            message = messages.Connect(
                addresses=connect.addresses,
                secret=connect.secret,
                epoch=self._spec.epoch,
                timeout_seconds=connect.timeout_seconds,
                rdma_devices=connect.rdma_devices,
            )
            process.writer.write(framing.encode([message]))
            return await self._await_loaded(process)
        except EOFError:
            self._report(await process.wait_after_eof())
        except framing.FrameError as error:
            self._report(worker.invalid_data(error))
        raise await asyncio.shield(self._end_reason)

    async def _prepare(self, process: WorkerProcess, request: messages.Load) -> ConnectRank:
        """Wait until all ranks are ready; return how to connect them."""
        await worker.check_version(process)
        own = self._spec.link_address or await self._connection_address()
        try:
            addresses.parse_private_address(own)
        except ValueError as error:
            raise LoadFailed(f"{error}; set `distributed.link_address` to the address of a private network") from error
        spec = messages.RankSpec(
            rank=0, size=len(self.members) + 1, split=self._spec.split, address=own, layers=self._spec.layers
        )
        process.writer.write(framing.encode([msgspec.structs.replace(request, rank=spec)]))
        reply = await worker.read_reply(process, messages.RankReady)
        others = await asyncio.gather(*(asyncio.shield(member.ready) for member in self.members))
        return ConnectRank(
            addresses=[
                addresses.join(own, reply.port),
                *(
                    addresses.join(member.host.link_address or ready.address, ready.port)
                    for member, ready in zip(self.members, others, strict=True)
                ),
            ],
            secret=secrets.token_hex(SECRET_BYTES),
            timeout_seconds=self._timeouts.start,
            rdma_devices=list(self._spec.rdma_devices),
        )

    async def _connection_address(self) -> str:
        member = self.members[0]
        await member.connected.wait()
        return member.address

    async def _await_loaded(self, process: WorkerProcess) -> messages.Loaded:
        """Wait until all ranks have loaded their parts. The slowest one may keep the others waiting."""
        self._loading = process.watchdog
        limit = process.launch.load_timeout
        try:
            async with asyncio.timeout(limit):
                loaded = await process.watchdog.guard(self._gather_loaded(process))
        except TimeoutError:
            raise LoadFailed(f"loading took longer than {limit:g} s (`worker.load_timeout_seconds`)") from None
        finally:
            self._loading = None
        if loaded is None:
            raise HostLost(
                f"no rank made progress for {process.launch.hang_timeout:g} s while loading; not loaded: "
                f"{_list(member for member in self.members if not member.loaded.done())}"
            )
        return loaded

    async def _gather_loaded(self, process: WorkerProcess) -> messages.Loaded:
        own, *_ = await asyncio.gather(
            worker.read_reply(process, messages.Loaded), *(asyncio.shield(member.loaded) for member in self.members)
        )
        return own

    def _not_ready(self) -> OsaurusError:
        missing = [member for member in self.members if not member.ready.done()]
        return HostLost(
            f"the ranks were not ready within {self._timeouts.start:g} s (`distributed.start_timeout_seconds`): "
            f"{_list(missing)}"
        )

    # Health

    def _relay(self, frame: bytes) -> None:
        self._plans += 1
        for member in self.members:
            member.send_plan(frame)

    def _watch(self, process: WorkerProcess) -> None:
        for member in self.members:
            self._events.publish(
                EventKind.RANK_STARTED,
                self._spec.name,
                host=member.host.name,
                rank=member.rank,
                bytes=member.info.needs_bytes,
            )
            self._watching.append(asyncio.create_task(self._watch_hang(member, process)))
        # A rank may have been lost in the same iteration of the event loop; the callback is called then, too.
        self._end_reason.add_done_callback(self._end_worker)

    async def _watch_hang(self, member: Member, process: WorkerProcess) -> None:
        """Report the rank that keeps this one waiting: a suspended one, or otherwise the one with the most plans."""
        await member.hung.wait()
        since = f"no progress for {self._timeouts.hang:g} s (`distributed.hang_timeout_seconds`)"
        if await asyncio.to_thread(lambda: process.suspended):
            self._report(HostLost(f"rank 0 on this host made {since}: its process is suspended"))
            return
        suspended = [each for each in self.members if each.suspended]
        culprit = suspended[0] if suspended else max(self.members, key=lambda each: each.behind)
        reason = "its process is suspended" if suspended else f"{culprit.behind} steps behind"
        error = HostLost(f'rank {culprit.rank} on host "{culprit.host.name}" made {since}: {reason}')
        self.member_failed(culprit, error)

    def _report(self, error: OsaurusError) -> None:
        """Take an error as the reason for the end of the group, unless there is one."""
        if self._end_reason.done():
            return
        if not any(part in error.message for part in PEER_LOST):
            self._decide(error)
        elif self._settling is None:
            self._settling = self._clock.call_at(self._clock.time() + SETTLE_SECONDS, self._decide, error)

    def _decide(self, error: OsaurusError) -> None:
        if self._settling is not None:
            self._settling.cancel()
        if not self._end_reason.done():
            self._end_reason.set_result(error)

    # End

    def _end_worker(self, end_reason: "asyncio.Future[OsaurusError]") -> None:
        if self._worker is not None:
            self._ending = asyncio.create_task(self._worker.stop(end_reason.result()))

    async def _wait_stopped(self) -> None:
        await asyncio.gather(*(member.wait_stopped(self._stop_seconds) for member in self.members))
        for task in self._watching:
            task.cancel()
        self._state = RankState.LOST
        self._ended.set()


def _list(members: Iterable[Member]) -> str:
    names = [f'rank {member.rank} on host "{member.host.name}" ({member.state})' for member in members]
    return ", ".join(names) or "rank 0 on this host"
