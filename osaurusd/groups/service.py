"""The parts of models that run on several hosts, and how they depend on each other."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from osaurusd.config import Config
from osaurusd.events import EventBus
from osaurusd.groups.distribution import Distribution
from osaurusd.groups.file_service import FileService
from osaurusd.groups.files import ModelFiles
from osaurusd.groups.group import SIGNAL_MEANINGS
from osaurusd.groups.launcher import GroupLauncher
from osaurusd.groups.manifest import Manifests
from osaurusd.groups.member import Timeouts
from osaurusd.groups.rank import RankContext
from osaurusd.groups.rank_service import RankService
from osaurusd.hosts.service import Hosts
from osaurusd.http.routes import Route
from osaurusd.models.catalog import Catalog
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.placement import LocalLauncher
from osaurusd.pool.pool import Pool
from osaurusd.wire.hosts import ControlRoute, HostFacts
from osaurusd.wire.placement import Versions


class Groups:
    """Builds and connects the parts. Nothing runs until a model is distributed or another host asks for a rank.

    Args:
        hosts: the paired hosts.
        catalog: the models on this host.
        digests: the file with the digests of their files.
        config: returns the configuration in force.
        versions: returns those of this host.
        events: receives the events of ranks and leases.

    Attributes:
        distribution: where models run.
        files: the files of models of other hosts.
    """

    def __init__(
        self,
        hosts: Hosts,
        catalog: Catalog,
        digests: Path,
        *,
        config: Callable[[], Config],
        versions: Callable[[], Versions],
        events: EventBus,
    ) -> None:
        self._hosts = hosts
        self._config = config
        self._versions = versions
        self._events = events
        manifests = Manifests(digests)
        self.distribution = Distribution(
            config,
            catalog,
            hosts.registry,
            manifests,
            ask=lambda host: hosts.client.fetch(host, ControlRoute.FACTS, HostFacts),
            describe=hosts.facts.collect,
        )
        self.files = ModelFiles(catalog, manifests, lambda: config().pulls, hosts.identity)
        self._file_service = FileService(catalog, manifests, self.distribution.includes)

    def create_launcher(self, config: PoolConfig) -> GroupLauncher:
        """Create the launcher of the pool."""
        clock = asyncio.get_running_loop()
        return GroupLauncher(
            LocalLauncher(config.launch, config.standby_seconds, clock),
            config.launch,
            client=self._hosts.client,
            find_host=self._hosts.registry.get,
            planner=self.distribution,
            manifests=self.distribution,
            timeouts=lambda: Timeouts.from_config(self._config().distributed),
            link_address=self._get_link_address,
            versions=self._versions,
            events=self._events,
            clock=clock,
        )

    def create_rank_service(self, pool: Pool, is_draining: Callable[[], bool]) -> RankService:
        """Create the service that runs ranks for other hosts.

        Args:
            pool: lends the memory.
            is_draining: whether new ranks are refused.
        """
        context = RankContext(
            pool,
            self.files,
            launch=lambda: replace(pool.launch, signal_meanings=SIGNAL_MEANINGS),
            lend_bytes=lambda: self._config().distributed.lend_bytes,
            link_address=self._get_link_address,
            versions=self._versions,
            is_draining=is_draining,
            events=self._events,
            clock=asyncio.get_running_loop(),
        )
        return RankService(context, lambda: self._config().distributed.stream_timeout_seconds)

    @property
    def routes(self) -> list[Route]:
        """What paired hosts can request, besides ranks."""
        return self._file_service.routes

    def _get_link_address(self) -> str:
        return self._config().distributed.link_address
