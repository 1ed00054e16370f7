"""Which models run over several hosts, and where their ranks run."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from osaurusd.config import Config
from osaurusd.errors import HostNotFound, InvalidRequest, LoadFailed, ModelNotFound
from osaurusd.groups import candidates, facts, placement
from osaurusd.groups.candidates import CandidateHost
from osaurusd.groups.manifest import Manifests
from osaurusd.groups.placement import Placement
from osaurusd.hosts.registry import Host, HostRegistry
from osaurusd.models.catalog import Catalog
from osaurusd.models.record import ModelRecord
from osaurusd.pool.memory import FLOAT32_BYTES, ORDINARY_TOKENS, WEIGHTS_FACTOR
from osaurusd.rpc import messages
from osaurusd.wire.hosts import HostFacts
from osaurusd.wire.placement import Manifest, PlacementInfo, SplitSetting


class PlacementRequest(msgspec.Struct, frozen=True):
    """Over which hosts, besides this one, a model is to run.

    Attributes:
        by_client: whether a request to load the model said so, and not the configuration.
    """

    hosts: tuple[str, ...]
    split: SplitSetting
    by_client: bool = False


class Distribution:
    """Decides over which hosts each model runs, from the configuration and requests to load models.

    Args:
        config: returns the configuration in force.
        catalog: the models on this host.
        registry: the paired hosts.
        manifests: the files of models.
        ask: returns what a paired host states about itself.
        describe: returns what this host states, given its and the other side's address of a connection.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        catalog: Catalog,
        registry: HostRegistry,
        manifests: Manifests,
        *,
        ask: Callable[[Host], Awaitable[HostFacts]],
        describe: Callable[[str, str], Awaitable[HostFacts]],
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._registry = registry
        self._manifests = manifests
        self._ask = ask
        self._describe = describe
        self._client_requests: dict[str, PlacementRequest] = {}
        self._planned: dict[str, tuple[PlacementRequest, Placement]] = {}

    def find_request(self, record: ModelRecord) -> PlacementRequest | None:
        """Return over which hosts a model is to run; None for one process on this host."""
        if request := self._client_requests.get(record.repo):
            return request if request.hosts else None
        models = self._config().distributed.models
        names = (*record.names, record.repo.lower())
        configured = next((each for name, each in models.items() if name.lower() in names), None)
        return PlacementRequest(tuple(configured.hosts), configured.split) if configured and configured.hosts else None

    async def request(
        self, record: ModelRecord, hosts: Sequence[str], split: SplitSetting | None, memory_bytes: int
    ) -> None:
        """Have the next loads of a model use these hosts instead of the configured ones, until `forget` is called.

        Args:
            record: the model.
            hosts: the names of the other hosts; none for one process on this host.
            split: None for `auto`.
            memory_bytes: memory that this host has for models.

        Raises:
            OsaurusError: the model cannot run over these hosts; nothing changes. `param` names the field at fault.
        """
        request = PlacementRequest(tuple(hosts), split or "auto", by_client=True)
        if hosts:
            self._planned[record.repo] = request, await self._plan(record, request, memory_bytes)
        elif split is not None:
            raise InvalidRequest("`split` requires `hosts`", param="split")
        self._client_requests[record.repo] = request

    def is_placed(self, record: ModelRecord, hosts: Sequence[str], split: SplitSetting | None) -> bool:
        """Whether a model is to run over these hosts, divided like this."""
        request = self.find_request(record)
        if request is None:
            return not hosts
        return request.hosts == tuple(hosts) and (split is None or request.split == split)

    def forget(self, key: str) -> None:
        """Use the configured hosts of a model again."""
        self._client_requests.pop(key, None)
        self._planned.pop(key, None)

    def includes(self, record: ModelRecord, host: str) -> bool:
        """Whether a paired host runs a part of a model."""
        request = self.find_request(record)
        return request is not None and host.lower() in (name.lower() for name in request.hosts)

    def info(self, record: ModelRecord) -> PlacementInfo | None:
        """Describe where a model is to run, and the placement of its last load; None for one process on this host."""
        request = self.find_request(record)
        if request is None:
            return None
        planned = self._find_planned(record, request)
        if planned is None:
            return PlacementInfo(hosts=list(request.hosts), split=request.split)
        return planned.info(request.hosts, request.split)

    # For the launcher of groups

    async def plan_load(self, load: messages.Load, key: str) -> Placement | None:
        """Plan a load; None for a model that one process runs.

        Raises:
            OsaurusError: the model cannot run on its hosts.
        """
        record = await self._find(key)
        request = self.find_request(record)
        if request is None:
            return None
        memory_bytes = load.memory_limit_bytes or sys.maxsize
        planned = await self._plan(record, request, memory_bytes)
        self._planned[key] = request, planned
        return planned

    def estimate_bytes(self, record: ModelRecord) -> int | None:
        """Return the minimum memory of this host's rank; None for a model that one process runs.

        Before the first load, hosts have not said how much memory they have, and the model is divided evenly.
        """
        request = self.find_request(record)
        if request is None:
            return None
        if planned := self._find_planned(record, request):
            return planned.ranks[0].needs_bytes
        converts = self._config().worker.dequantize != "never" and sys.platform != "darwin"
        float32_bytes = (record.parameters or 0) * FLOAT32_BYTES if converts else 0
        weights = max(record.memory.weights_bytes, float32_bytes) * WEIGHTS_FACTOR
        cache = (record.memory.cache_bytes_per_token or 0) * ORDINARY_TOKENS
        return int((weights + cache) / (1 + len(request.hosts)))

    async def build(self, key: str) -> Manifest:
        """Build the manifest of a model.

        Raises:
            OsaurusError: a file cannot be read.
        """
        return await self._manifests.build(await self._find(key))

    def _find_planned(self, record: ModelRecord, request: PlacementRequest) -> Placement | None:
        """Return the last placement, unless the configuration has changed since."""
        planned = self._planned.get(record.repo)
        return planned[1] if planned and planned[0] == request else None

    async def _find(self, key: str) -> ModelRecord:
        record = next((each for each in await self._catalog.records() if each.repo == key), None)
        if record is None:
            raise ModelNotFound(f'model "{key}" has been removed', location=("model",))
        return record

    async def _plan(self, record: ModelRecord, request: PlacementRequest, memory_bytes: int) -> Placement:
        try:
            model = await asyncio.to_thread(facts.read_model, record)
            placement.check_model(model)
            hosts = [self._registry.get(name) for name in request.hosts]
            described = await self._ask_all(hosts, memory_bytes)
            return placement.plan(model, described, request.split, self._config().worker.dequantize)
        except (InvalidRequest, HostNotFound) as error:
            if request.by_client:
                error.param = error.param if isinstance(error, InvalidRequest) else "hosts"
                raise
            # A request that uses the model is not at fault.
            raise LoadFailed(f'`distributed.models."{record.name}"`: {error.message}') from error

    async def _ask_all(self, hosts: Sequence[Host], memory_bytes: int) -> list[CandidateHost]:
        """Return the facts of this host, then of the others."""
        stated = await asyncio.gather(*(self._ask(host) for host in hosts))
        # The other host knows under which of this host's addresses it can reach it.
        own_address = next((each.peer_address for each in stated), "")
        own = await self._describe(own_address, "")
        others = [candidates.from_host(host, each) for host, each in zip(hosts, stated, strict=True)]
        return [candidates.of_leader(own, memory_bytes), *others]
