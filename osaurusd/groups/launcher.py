"""Starting models on several hosts: the launcher that the pool of a leader uses."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
from msgspec.structs import replace

from osaurusd.errors import LoadFailed
from osaurusd.events import EventBus
from osaurusd.groups.group import RANK_0_GRACE_SECONDS, SIGNAL_MEANINGS, Group, GroupSpec
from osaurusd.groups.member import HostClient, Member, Timeouts
from osaurusd.groups.placement import Placement
from osaurusd.hosts.registry import Host
from osaurusd.models.record import ModelRecord
from osaurusd.pool.placement import LocalLauncher
from osaurusd.rpc import messages
from osaurusd.rpc.client import WorkerListener
from osaurusd.rpc.process import Launch
from osaurusd.rpc.watchdog import Clock
from osaurusd.rpc.worker import Worker
from osaurusd.wire import groups as wire
from osaurusd.wire.groups import RankInfo
from osaurusd.wire.placement import Manifest, Versions


class Planner(Protocol):
    """Decides where models run."""

    async def plan_load(self, load: messages.Load, key: str) -> Placement | None:
        """Plan a load; None for a model that one process runs.

        Raises:
            OsaurusError: the model cannot run on its hosts.
        """

    def estimate_bytes(self, record: ModelRecord) -> int | None:
        """Return the minimum memory of rank 0; None for a model that one process runs."""


class Manifests(Protocol):
    """Describes the files of models."""

    async def build(self, key: str) -> Manifest: ...


class GroupLauncher:
    """Starts models on several hosts, and all others as the local launcher does. Implements `pool.placement.Launcher`.

    Args:
        local: starts models in one process.
        launch: how to start rank 0.
        client: connects to the hosts.
        find_host: returns a paired host; raises `HostNotFound`.
        planner: decides where models run.
        manifests: describes their files.
        timeouts: returns the limits.
        link_address: returns the configured address for other ranks; empty for that of the control connection.
        versions: returns those of this host.
        events: receives the events of ranks.
        clock: measures times.
    """

    def __init__(
        self,
        local: LocalLauncher,
        launch: Launch,
        *,
        client: HostClient,
        find_host: Callable[[str], Host],
        planner: Planner,
        manifests: Manifests,
        timeouts: Callable[[], Timeouts],
        link_address: Callable[[], str],
        versions: Callable[[], Versions],
        events: EventBus,
        clock: Clock,
    ) -> None:
        self._local = local
        self._launch = launch
        self._client = client
        self._find_host = find_host
        self._planner = planner
        self._manifests = manifests
        self._timeouts = timeouts
        self._link_address = link_address
        self._versions = versions
        self._events = events
        self._clock = clock
        self._distributed: set[str] = set()
        self._groups: dict[str, Group] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._epoch = 0

    def configure(self, launch: Launch, standby_seconds: float) -> None:
        self._launch = launch
        self._local.configure(launch, standby_seconds)

    def needs_bytes(self, record: ModelRecord) -> int | None:
        needs = self._planner.estimate_bytes(record)
        # The pool asks this before each load, so that ordinary loads need no plan.
        if needs is None:
            self._distributed.discard(record.repo)
        else:
            self._distributed.add(record.repo)
        return needs

    def ranks(self, key: str) -> list[RankInfo]:
        group = self._groups.get(key)
        return group.ranks() if group is not None else []

    async def start(self, key: str, request: messages.Load, listener: WorkerListener) -> Worker:
        if (previous := self._groups.get(key)) is not None:
            # Its hosts count the memory of its ranks as lent until these have exited.
            await previous.wait_stopped()
        placement = await self._planner.plan_load(request, key) if key in self._distributed else None
        if placement is None:
            return await self._local.start(key, request, listener)
        if request.task != "generate" or request.vision:
            raise LoadFailed("only models that generate text, without images, can run on several hosts")
        manifest = await self._manifests.build(key)
        hosts = [self._find_host(rank.host) for rank in placement.ranks if rank.host is not None]
        timeouts = self._timeouts()
        spec = GroupSpec(
            manifest.model,
            self._next_epoch(),
            placement.split,
            placement.layer_counts,
            self._link_address(),
            placement.rdma_devices,
        )
        request = msgspec.structs.replace(request, dequantize="always" if placement.float32 else "never")
        group = self._groups[key] = Group(spec, timeouts, self._events, self._clock)
        starts = self._requests(spec, placement, manifest, request)
        members = [
            Member(host, start, self._client, group, timeouts, self._clock)
            for host, start in zip(hosts, starts, strict=True)
        ]
        launch = replace(
            self._launch, hang_timeout=timeouts.hang + RANK_0_GRACE_SECONDS, signal_meanings=SIGNAL_MEANINGS
        )
        try:
            return await group.start(members, request, launch, listener)
        finally:
            ending = asyncio.create_task(group.wait_stopped())
            self._ending.add(ending)
            ending.add_done_callback(lambda task: self._forget(task, key, group))

    def prepare_next(self) -> None:
        self._local.prepare_next()

    def drop_standby(self) -> None:
        self._local.drop_standby()

    async def close(self) -> None:
        """Return once all ranks have exited, or their hosts cannot confirm it."""
        await self._local.close()
        if self._ending:
            await asyncio.wait(self._ending)

    def _next_epoch(self) -> int:
        """Return a number that is larger than any before, also those before a restart of the daemon."""
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        return self._epoch

    def _requests(
        self, spec: GroupSpec, placement: Placement, manifest: Manifest, request: messages.Load
    ) -> list[wire.StartRank]:
        options = wire.RankOptions(
            context_length=request.context_length,
            dequantize=request.dequantize,
            cache_limit_bytes=request.cache_limit_bytes,
            prefix_cache_bytes=request.prefix_cache_bytes,
            max_waiting=request.max_waiting,
            stall_seconds=request.stall_seconds,
            wire=request.wire,
        )
        # With the same headroom, all ranks can hold as many tokens.
        headroom = (request.memory_limit_bytes or 0) / max(placement.ranks[0].needs_bytes, 1)
        return [
            wire.StartRank(
                group=spec.name,
                epoch=spec.epoch,
                versions=self._versions(),
                rank=number,
                size=len(placement.ranks),
                split=spec.split,
                needs_bytes=rank.needs_bytes,
                requested_bytes=int(rank.needs_bytes * headroom),
                manifest=manifest,
                layers=list(spec.layers),
                own_layers=(rank.layers.start, rank.layers.stop) if rank.layers is not None else None,
                options=options,
            )
            for number, rank in enumerate(placement.ranks)
            if rank.host is not None
        ]

    def _forget(self, task: "asyncio.Task[None]", key: str, group: Group) -> None:
        self._ending.discard(task)
        if self._groups.get(key) is group:
            del self._groups[key]
