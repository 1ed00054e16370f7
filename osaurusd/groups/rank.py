"""The follower's side of a group: one rank for one leader, from the lease of its memory to the exit of its process."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from osaurusd import addresses
from osaurusd.errors import (
    Draining,
    InvalidRequest,
    LoadFailed,
    ModelUnloaded,
    OsaurusError,
    VersionMismatch,
    WorkerCrashed,
)
from osaurusd.events import EventBus
from osaurusd.groups.stream import ControlStream
from osaurusd.hosts.registry import Host
from osaurusd.log import get_logger
from osaurusd.platform import memory
from osaurusd.pool.memory_leases import MemoryLease
from osaurusd.pool.pool import Pool
from osaurusd.rpc import framing, messages, worker
from osaurusd.rpc.process import Launch, WorkerProcess, spawn
from osaurusd.rpc.watchdog import Clock, sleep
from osaurusd.wire import groups as wire
from osaurusd.wire.admin import WorkerInfo, WorkerState
from osaurusd.wire.groups import LeaseInfo, RankStage
from osaurusd.wire.placement import COMMON_PACKAGES, Manifest, Versions
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

STATUS_SECONDS = 2.0
"""How often the leader learns about the process of a rank."""

FLUSH_SECONDS = 5.0
"""How long to wait until the last message is sent."""

MAX_UNREAD_BYTES = 64 * 1024 * 1024
"""A rank that leaves more than this of its plans unread is ended."""

Report = Callable[[str, int, int], None]
"""Reports a stage of `RankStage` with its done and total bytes."""


class Files(Protocol):
    """Provides the files of models."""

    async def ensure(self, manifest: Manifest, host: Host, only: range | None, report: Report) -> Path:
        """Return a folder with the files of a model, and fetch what is missing from `host`.

        Args:
            manifest: the files.
            host: the leader.
            only: the layers whose files are needed; None for all.
            report: called with the progress.
        """


class RankContext:
    """What all ranks on this host share.

    Args:
        pool: lends the memory.
        files: provides the models' files.
        launch: returns how to start workers.
        lend_bytes: returns the limit of all leases together.
        link_address: returns the configured address for other ranks; empty for that of the control connection.
        versions: returns those of this host.
        is_draining: whether new ranks are refused.
        events: receives the events of leases and ranks.
        clock: measures times.
    """

    def __init__(
        self,
        pool: Pool,
        files: Files,
        *,
        launch: Callable[[], Launch],
        lend_bytes: Callable[[], int],
        link_address: Callable[[], str],
        versions: Callable[[], Versions],
        is_draining: Callable[[], bool],
        events: EventBus,
        clock: Clock,
    ) -> None:
        self.pool = pool
        self.files = files
        self.launch = launch
        self.lend_bytes = lend_bytes
        self.link_address = link_address
        self.versions = versions
        self.is_draining = is_draining
        self.events = events
        self.clock = clock


class Rank:
    """One rank of another host's group.

    Args:
        start: what the leader asks for.
        owner: the leader.
        address: this host's address on the control connection.
        stream: reports to the leader.
        context: what all ranks share.
        predecessor: the rank of an earlier epoch, which ends first.

    Attributes:
        epoch: the number of the start.
        owner: the name of the leader.
        folder: the files that it uses, once they are there.
        task: runs until the process has exited.
    """

    def __init__(
        self,
        start: wire.StartRank,
        owner: Host,
        address: str,
        stream: ControlStream[wire.ToFollower],
        context: RankContext,
        predecessor: "Rank | None" = None,
    ) -> None:
        self.epoch = start.epoch
        self.folder: Path | None = None
        self._start = start
        self._owner = owner
        self.owner = owner.name
        self._address = context.link_address() or address
        self._stream = stream
        self._context = context
        self._lease = MemoryLease(start.group, owner.name, start.needs_bytes)
        self._predecessor = predecessor
        self._leased = self._granted = False
        self._loaded: messages.Loaded | None = None
        self._stats_bytes = 0
        self._process: WorkerProcess | None = None
        self._memory_bytes = 0
        self._stop_reason: OsaurusError | None = None
        # While the predecessor or the process exits, the rank must not end.
        self._interruptible = False
        self.task = asyncio.create_task(self._serve())

    @property
    def info(self) -> WorkerInfo | None:
        """Describe the rank as a worker; None unless it holds memory."""
        if not self._leased:
            return None
        start = self._start
        return WorkerInfo(
            model=start.group,
            state=WorkerState.READY if self._loaded else WorkerState.STARTING,
            pid=self._process.pid if self._process else None,
            device=self._loaded.device if self._loaded else None,
            memory_bytes=self._memory_bytes,
            needs_bytes=self._lease.nbytes,
            limit_bytes=self._lease.nbytes,
            reserved_bytes=self._lease.nbytes,
            lease=LeaseInfo(owner=self.owner, rank=start.rank, size=start.size, split=start.split),
        )

    def stop(self, reason: OsaurusError) -> None:
        """End the rank: SIGTERM, and SIGKILL after the grace period."""
        if self._stop_reason is None and not self.task.done():
            self._stop_reason = reason
            if self._interruptible:
                self.task.cancel()

    def handle(self, message: wire.ToFollower | bytes) -> None:
        """Handle a message of the leader."""
        match message:
            case bytes():
                self._pass_on(message)
            case wire.ConnectRank():
                self._connect(message)
            case wire.StopRank():
                self.stop(ModelUnloaded("the leader has unloaded the model"))

    def _pass_on(self, frames: bytes) -> None:
        try:
            framing.count_plans(frames)
        except framing.FrameError as error:
            self.stop(InvalidRequest(f"the leader sent invalid data: {error}"))
            return
        if self._process is None or self._process.writer.is_closing():
            return
        self._process.writer.write(frames)
        if self._process.writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.stop(WorkerCrashed(f"the rank left more than {MAX_UNREAD_BYTES} bytes of its plans unread"))

    def _connect(self, message: wire.ConnectRank) -> None:
        try:
            for address in message.addresses:
                addresses.parse_private_address(str(addresses.parse_endpoint(address)[0]))
        except ValueError as error:
            self.stop(InvalidRequest(str(error)))
            return
        if self._process is not None:
            connect = messages.Connect(
                addresses=message.addresses,
                secret=message.secret,
                epoch=self.epoch,
                timeout_seconds=message.timeout_seconds,
                rdma_devices=message.rdma_devices,
            )
            self._process.writer.write(framing.encode([connect]))

    # Life cycle

    async def _serve(self) -> None:
        """Run the rank, and report how it ended."""
        try:
            if self._predecessor is not None:
                self._predecessor.stop(ModelUnloaded("the leader has started the rank again"))
                await asyncio.wait({self._predecessor.task})
                self._predecessor = None
            if self._stop_reason is not None:
                raise self._stop_reason
            self._interruptible = True
            self._check()
            limit = self._context.lend_bytes()
            self._lease.nbytes = self._choose_size(self._context.pool.lendable_bytes(limit))
            async with self._context.pool.lend(self._lease, limit):
                self._report_granted()
                self.folder = await self._fetch()
                await self._run(self.folder)
        except asyncio.CancelledError:
            error = self._stop_reason or ModelUnloaded("the rank was ended")
        except OsaurusError as failure:
            error = failure
        except Exception as failure:
            log.exception("rank failed unexpectedly")
            error = LoadFailed(f"the rank failed unexpectedly: {type(failure).__name__}")
        self._report_end(error)

    def _choose_size(self, lendable: int) -> int:
        """Return the size of the lease. At least half of the memory that the rank does not need is left for others."""
        needs = self._start.needs_bytes
        return max(min(self._start.requested_bytes, needs + (lendable - needs) // 2), needs)

    def _report_granted(self) -> None:
        self._leased = self._granted = True
        log.info("lease granted", model=self._start.group, owner=self.owner, bytes=self._lease.nbytes)
        self._publish(EventKind.LEASE_GRANTED, bytes=self._lease.nbytes)

    def _report_end(self, error: OsaurusError) -> None:
        """Report the end to the leader and to this host."""
        self._leased = False
        stopped = self._stop_reason is not None
        log.info("rank ended", model=self._start.group, owner=self.owner, reason=error.message)
        if stopped or self._loaded:
            self._stream.send(wire.RankExited(message=error.message))
        else:
            self._stream.send(wire.RankFailed(code=error.code, message=error.message))
        if self._loaded and not stopped:
            self._publish(EventKind.RANK_LOST, reason=error.message)
        kind = EventKind.LEASE_ENDED if self._granted else EventKind.LEASE_REFUSED
        self._publish(kind, reason=error.message, bytes=self._lease.nbytes)

    def _check(self) -> None:
        """Check what needs no memory.

        Raises:
            OsaurusError: the rank cannot run here.
        """
        context, installed, theirs = self._context, self._context.versions(), self._start.versions
        if context.is_draining():
            raise Draining("the host is draining and accepts no new ranks")
        for package in COMMON_PACKAGES:
            ours, other = installed.get(package), theirs.get(package)
            if ours != other:
                raise VersionMismatch(
                    f"the host has {package} {ours}, but the leader has {other}; install the same versions on both"
                )
        try:
            addresses.parse_private_address(self._address)
        except ValueError as error:
            raise LoadFailed(f"{error}; set `distributed.link_address` on that host") from error
        self._progress(RankStage.RESERVING, 0, 0)

    async def _fetch(self) -> Path:
        own = self._start.own_layers
        only = None if own is None else range(*own)
        return await self._context.files.ensure(self._start.manifest, self._owner, only, self._progress)

    async def _run(self, folder: Path) -> None:
        self._progress(RankStage.STARTING, 0, 0)
        process = self._process = await spawn(self._context.launch(), self._context.clock)
        reporting = asyncio.create_task(self._report_status(process))
        try:
            await worker.check_version(process)
            process.writer.write(framing.encode([self._load_request(folder)]))
            while True:
                self._handle_frame(await process.read())
        except EOFError:
            raise await process.wait_after_eof() from None
        except framing.FrameError as error:
            raise worker.invalid_data(error) from error
        finally:
            reporting.cancel()
            self._interruptible = False
            await asyncio.shield(_terminate(process))

    def _load_request(self, folder: Path) -> messages.Load:
        start, options = self._start, self._start.options
        return messages.Load(
            path=str(folder),
            context_length=options.context_length,
            dequantize=options.dequantize,
            memory_limit_bytes=self._lease.nbytes,
            cache_limit_bytes=options.cache_limit_bytes,
            prefix_cache_bytes=options.prefix_cache_bytes,
            max_waiting=options.max_waiting,
            stall_seconds=options.stall_seconds,
            wire=options.wire,
            rank=messages.RankSpec(
                rank=start.rank,
                size=start.size,
                split=start.split,
                address=self._address,
                layers=tuple(start.layers),
            ),
        )

    def _handle_frame(self, frame: messages.FromWorker) -> None:
        match frame:
            case messages.RankReady():
                self._stream.send(
                    wire.RankReady(address=self._address, port=frame.port, lease_bytes=self._lease.nbytes)
                )
            case messages.LoadFailed():
                raise LoadFailed(f"the model cannot be loaded: {frame.message}")
            case messages.Loaded() | messages.Pulse() | messages.Stats():
                if isinstance(frame, messages.Loaded):
                    self._loaded = frame
                    self._publish(EventKind.RANK_STARTED, bytes=self._lease.nbytes)
                elif isinstance(frame, messages.Stats):
                    self._stats_bytes = frame.active_bytes + frame.cache_bytes
                self._stream.send_frames(framing.encode([frame]))

    async def _report_status(self, process: WorkerProcess) -> None:
        """Report the state of the process, which itself cannot do so while it computes or is suspended."""
        while True:
            resident, suspended = await asyncio.to_thread(lambda: (memory.footprint(process.pid), process.suspended))
            self._memory_bytes = max(resident, self._stats_bytes)
            self._stream.send(wire.RankStatus(memory_bytes=self._memory_bytes, suspended=suspended))
            await sleep(self._context.clock, STATUS_SECONDS)

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._stream.send(wire.RankProgress(stage=RankStage(stage), done=done, total=total))

    def _publish(self, kind: EventKind, *, reason: str | None = None, bytes: int | None = None) -> None:
        self._context.events.publish(
            kind, self._start.group, host=self.owner, rank=self._start.rank, reason=reason, bytes=bytes
        )


async def _terminate(process: WorkerProcess) -> None:
    """End a process that may wait for other ranks for ever: SIGTERM, and SIGKILL after the grace period."""
    if not process.exited.done():
        process.signal(signal.SIGTERM)
    await process.wait_after_eof()
    with contextlib.suppress(OSError):
        process.writer.close()
