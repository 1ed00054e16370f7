"""Hosts in one process: a leader and followers with fake workers, connected by links that tests cut."""

import asyncio
import contextlib
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

from aiohttp import WSMessage, WSMsgType
from prometheus_client import CollectorRegistry

from osaurusd.errors import HostUnreachable
from osaurusd.events import EventBus
from osaurusd.groups.group import SIGNAL_MEANINGS
from osaurusd.groups.launcher import GroupLauncher
from osaurusd.groups.member import Timeouts
from osaurusd.groups.placement import Placement, RankPlan
from osaurusd.groups.rank import RankContext
from osaurusd.groups.rank_service import RankService
from osaurusd.hosts.registry import Host
from osaurusd.models.record import MemoryEstimate, ModelRecord
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.metrics import PoolMetrics
from osaurusd.pool.placement import LocalLauncher
from osaurusd.pool.pool import Pool
from osaurusd.pool.state import SchedulerConfig
from osaurusd.rpc.process import Launch
from osaurusd.wire.admin import Availability
from osaurusd.wire.placement import Manifest
from tests.osaurusd.pool.helpers import COMMAND, FakeClock, no_leaked_processes

VERSIONS = {"osaurusd": "1", "mlx": "2", "mlx-lm": "3"}
RANK_BYTES = 1000
LENT_BYTES = 5000
# A rank gets half of what it does not need.
LEASE_BYTES = RANK_BYTES + (LENT_BYTES - RANK_BYTES) // 2
BUDGET_BYTES = 10_000
CLOSED = WSMessage(WSMsgType.CLOSED, None, None)


class Link:
    """A connection of two sockets. While it is cut, nothing arrives; then everything does, as with TCP."""

    def __init__(self):
        self.ends = FakeSocket(self), FakeSocket(self)
        self.is_cut = False
        self._held = deque()

    def deliver(self, sender, message):
        receiver = self.ends[sender is self.ends[0]]
        if self.is_cut:
            self._held.append((receiver, message))
        else:
            receiver.incoming.put_nowait(message)

    def heal(self):
        self.is_cut = False
        while self._held:
            receiver, message = self._held.popleft()
            receiver.incoming.put_nowait(message)

    def reset(self):
        """End the connection, as the death of a daemon does."""
        for end in self.ends:
            end.incoming.put_nowait(CLOSED)


class FakeSocket:
    def __init__(self, link):
        self.incoming = asyncio.Queue()
        self._link = link
        self._closed = False

    async def receive(self):
        return await self.incoming.get()

    async def send_str(self, data):
        self._send(WSMsgType.TEXT, data)

    async def send_bytes(self, data):
        self._send(WSMsgType.BINARY, data)

    async def close(self):
        if not self._closed:
            self._closed = True
            self._link.deliver(self, CLOSED)

    def get_extra_info(self, name):
        assert name == "sockname"
        return "127.0.0.1", 4000

    def _send(self, kind, data):
        if self._closed:
            raise ConnectionResetError("closed")
        self._link.deliver(self, WSMessage(kind, data, None))


@dataclass
class Follower:
    """A host that lends memory. `folder` holds the files of every model."""

    name: str
    folder: object
    clock: object
    lend_bytes: int = LENT_BYTES
    draining: bool = False
    versions: dict = field(default_factory=lambda: dict(VERSIONS))
    fetch_error: Exception | None = None
    stop_grace: float = 5

    def __post_init__(self):
        self.host = Host(name=self.name, url="https://x", certificate="", fingerprint=self.name, added_at=0)
        self.events = EventBus()
        launch = Launch(command=COMMAND, stop_grace=self.stop_grace, signal_meanings=SIGNAL_MEANINGS)
        config = PoolConfig(launch=launch, scheduler=SchedulerConfig(budget_bytes=BUDGET_BYTES))
        self.pool = Pool(config, events=self.events)
        context = RankContext(
            self.pool,
            self,
            launch=lambda: launch,
            lend_bytes=lambda: self.lend_bytes,
            link_address=lambda: "",
            versions=lambda: self.versions,
            is_draining=lambda: self.draining,
            events=self.events,
            clock=self.clock,
        )
        self.service = RankService(context, lambda: 30.0)
        self.links = []
        self.reachable = True
        self._serving = set()

    async def ensure(self, manifest, host, only, report):
        report("fetching", 1, 2)
        if self.fetch_error:
            raise self.fetch_error
        return self.folder

    def accept(self, owner):
        """Serve a new connection of `owner`; return the other end."""
        if not self.reachable:
            raise HostUnreachable(f'host "{self.name}" cannot be reached')
        link = Link()
        self.links.append(link)
        serving = asyncio.create_task(self._serve(link.ends[1], owner))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        return link.ends[0]

    async def _serve(self, socket, owner):
        try:
            await self.service.run(socket, owner, "127.0.0.2")
        finally:
            await socket.close()

    @property
    def kinds(self):
        return [event.kind for event in self.events.history()]

    @property
    def pid(self):
        (worker,) = self.service.workers()
        return worker.pid

    async def close(self):
        await self.service.close()
        await self.pool.close()
        if self._serving:
            await asyncio.wait(self._serving)


class Leader:
    """A host that serves models over all followers.

    Attributes:
        placements: how, by model.
        estimates: the memory of rank 0 before the first plan, where it is not `RANK_BYTES`.
    """

    def __init__(self, followers, clock, stop_grace=5):
        self.host = Host(name="a", url="https://a", certificate="", fingerprint="a", added_at=0)
        self.followers = {follower.name: follower for follower in followers}
        self.placements = {}
        self.estimates = {}
        self.events = EventBus()
        launch = Launch(command=COMMAND, stop_grace=stop_grace)
        loop = asyncio.get_running_loop()
        self.launcher = GroupLauncher(
            LocalLauncher(launch, 0, loop),
            launch,
            client=self,
            find_host=lambda name: self.followers[name].host,
            planner=self,
            manifests=self,
            timeouts=lambda: Timeouts(start=120, stream=30, hang=60),
            link_address=lambda: "",
            versions=lambda: VERSIONS,
            events=self.events,
            clock=clock,
        )
        config = PoolConfig(launch=launch, scheduler=SchedulerConfig(budget_bytes=BUDGET_BYTES))
        self.registry = CollectorRegistry()
        metrics = PoolMetrics(self.registry)
        self.pool = Pool(config, events=self.events, metrics=metrics, launcher=self.launcher)

    def distribute(self, record, split="tensor", layers=None):
        """Run this model on all hosts."""
        names = [None, *self.followers]
        ranges = layers or [None] * len(names)
        ranks = tuple(RankPlan(name, own, RANK_BYTES) for name, own in zip(names, ranges, strict=True))
        self.placements[record.repo] = Placement(split, ranks, float32=True, reason="a test")

    @contextlib.asynccontextmanager
    async def websocket(self, host, path):
        assert path == "/v0/ranks"
        socket = self.followers[host.name].accept(self.host)
        try:
            yield socket
        finally:
            await socket.close()

    async def plan_load(self, request, key):
        return self.placements.get(key)

    def estimate_bytes(self, record):
        return self.estimates.get(record.repo, RANK_BYTES) if record.repo in self.placements else None

    async def build(self, key):
        return Manifest(model=key, digest="0", files=())

    @property
    def kinds(self):
        return [event.kind for event in self.events.history()]

    @property
    def worker(self):
        (worker,) = self.pool.snapshot()
        return worker

    async def close(self):
        await self.pool.close()


@asynccontextmanager
async def cluster(tmp_path, *, behaviors=("echo",), stop_grace=5, clock=None):
    """Run a leader `a` and one follower for each behavior, `b`, `c`, …; fail if a process is left behind.

    Yields an object with `leader`, `followers`, `clock` and `model`, the record of a model that runs on all of them.
    """
    clock = clock or FakeClock()
    async with no_leaked_processes():
        followers = []
        for name, behavior in zip("bcde", behaviors, strict=False):
            folder = tmp_path / name / behavior
            folder.mkdir(parents=True)
            followers.append(Follower(name, folder, clock, stop_grace=stop_grace))
        leader = Leader(followers, clock, stop_grace)
        (tmp_path / "echo").mkdir()
        record = model_record("m", tmp_path / "echo")
        leader.distribute(record)
        try:
            yield SimpleNamespace(leader=leader, followers=followers, clock=clock, model=record)
        finally:
            async with asyncio.timeout(60):
                closing = asyncio.create_task(_close(leader, followers))
                while not closing.done():
                    clock.advance(0.1)  # for grace periods
                    await asyncio.sleep(0.01)
                await closing


async def _close(leader, followers):
    await leader.close()
    for follower in followers:
        await follower.close()


def model_record(name, folder, weights_bytes=0):
    """Return the record of a model, whose folder is named after what its worker does."""
    memory, state = MemoryEstimate(weights_bytes=weights_bytes), Availability.AVAILABLE
    fields = {"name": name, "repo": name, "path": folder, "state": state, "memory": memory}
    return ModelRecord(**fields, source="hub", created=0, context_length=512)


async def assert_memory_is_back(hosts):
    """Every host has ended its rank and lease."""
    async with asyncio.timeout(30):
        while any(follower.service.workers() for follower in hosts.followers):
            hosts.clock.advance(0.1)  # for grace periods
            await asyncio.sleep(0.01)
    assert all(follower.pool.budget.used_bytes == 0 for follower in hosts.followers)
