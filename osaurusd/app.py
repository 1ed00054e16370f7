"""The composition root: build the services, serve, and shut down gracefully."""

import asyncio
import functools
import os
import socket
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry, disable_created_metrics

from osaurusd import __version__, log, origins
from osaurusd.activity import Activity
from osaurusd.admin.daemon import DaemonApi, DaemonInfo
from osaurusd.admin.degraded import Prerequisites
from osaurusd.admin.drain import Drain
from osaurusd.admin.hosts import HostsApi
from osaurusd.admin.imports import ImportsApi
from osaurusd.admin.keys import KeysApi
from osaurusd.admin.models import ModelsApi
from osaurusd.admin.pulls import PullsApi
from osaurusd.admin.residency import ResidencyApi
from osaurusd.admin.routes import add_version_headers, admin_group, check_api_version
from osaurusd.config import Config, ConfigChange, LiveConfig, Server
from osaurusd.downloads.manager import PullManager
from osaurusd.errors import ShuttingDown
from osaurusd.events import EventBus
from osaurusd.groups.metrics import RankCollector
from osaurusd.groups.service import Groups
from osaurusd.hosts.service import Hosts
from osaurusd.http.admission import Admission
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.app import create_app, socket_middlewares
from osaurusd.http.auth import name_version, require_api_key
from osaurusd.http.cors import Cors, require_json_body
from osaurusd.http.errors import as_osaurus_error, error_body, error_response
from osaurusd.http.fetch import UrlFetcher
from osaurusd.http.health import health_routes
from osaurusd.http.listen import url_of
from osaurusd.http.metrics import HttpMetrics
from osaurusd.http.openapi import openapi_routes
from osaurusd.http.routes import Route, RouteGroup
from osaurusd.http.server import HttpServer
from osaurusd.http.tls import Tls
from osaurusd.http.trusted_hosts import BoundHosts, trusted_hosts
from osaurusd.imports.manager import ImportManager
from osaurusd.inference.service import Service
from osaurusd.models.catalog import Catalog
from osaurusd.models.names import NameRegistry
from osaurusd.models.roots import extra_roots, hub_cache
from osaurusd.platform import service_manager
from osaurusd.platform.power import PowerAssertion
from osaurusd.pool.config import PoolConfig
from osaurusd.pool.metrics import PoolCollector, PoolMetrics
from osaurusd.pool.pins import Pins
from osaurusd.pool.pool import Pool
from osaurusd.pool.pressure import PressureRelief
from osaurusd.protocols.anthropic import openapi as anthropic_openapi
from osaurusd.protocols.anthropic.routes import anthropic_routes
from osaurusd.protocols.ollama import openapi as ollama_openapi
from osaurusd.protocols.ollama.embeddings import Embeddings
from osaurusd.protocols.ollama.generation import Generation
from osaurusd.protocols.ollama.management import Management
from osaurusd.protocols.ollama.models import Models
from osaurusd.protocols.ollama.routes import ollama_routes
from osaurusd.protocols.openai import openapi as openai_openapi
from osaurusd.protocols.openai.responses import openapi as responses_openapi
from osaurusd.protocols.openai.responses.configured_store import create_store
from osaurusd.protocols.openai.responses.routes import responses_routes
from osaurusd.protocols.openai.responses.store import MemoryStore
from osaurusd.protocols.openai.routes import openai_routes
from osaurusd.ui import openapi as ui_openapi
from osaurusd.ui.monitor import Monitor
from osaurusd.ui.routes import is_static, ui_routes
from osaurusd.wire.page import Mode, Page

logger = log.get_logger(__name__)

APIS = (openai_openapi.API, responses_openapi.API, anthropic_openapi.API, ollama_openapi.API, ui_openapi.API)
"""The APIs that `/openapi.json` describes."""


class Daemon:
    """The services of a daemon whose prerequisites are met.

    Args:
        prerequisites: the sockets for clients, and their access policy.
        config: the configuration in force.
        info: the identity of the daemon.
        keys: the accepted API keys.
        log_file: the log.
        stop: when to stop.
    """

    def __init__(
        self,
        prerequisites: Prerequisites,
        config: LiveConfig,
        info: DaemonInfo,
        keys: ApiKeys,
        log_file: log.LogFile,
        stop: service_manager.StopRequest,
    ) -> None:
        self._sockets = prerequisites.sockets
        self._auth = prerequisites.auth
        self._config = config
        self._info = info
        self._keys = keys
        self._log_file = log_file
        self._stop = stop
        self._tls = Tls.from_config(config.current.server)
        state_dir = info.paths.state_dir
        power = PowerAssertion()
        self._bus = EventBus()
        self._names = NameRegistry(state_dir / "names.json")
        self._catalog = Catalog(info.paths.models_dir, hub_cache(), self._names, extra_roots(config.current))
        self._imports = ImportManager(self._catalog)
        self._pins = Pins(state_dir / "residency.json")
        self._metrics = CollectorRegistry()
        self._admission = Admission(self._get_config)
        self._drain = Drain(state_dir / "drain.json", self._admission, self._bus, self._metrics)
        self._hosts = Hosts(state_dir, self._get_config, self._bus, self._lendable_bytes)
        self._groups = self._create_groups()
        pool_metrics = PoolMetrics(self._metrics)
        self._pool = self._create_pool(pool_metrics, power)
        self._response_memory = MemoryStore(lambda: config.current.responses.max_bytes)
        self._responses = create_store(config, state_dir / "responses.db", self._response_memory)
        self._pressure = PressureRelief(self._pool)
        self._pulls = self._create_pulls(power)
        self._activity = Activity()
        self._monitor = self._create_monitor(pool_metrics)
        self._ranks = self._groups.create_rank_service(self._pool, lambda: self._drain.status.draining)
        self._models_api = self._create_models_api()
        self._register_collectors()

    @property
    def _endpoints(self) -> list[str]:
        return [url_of(sock, tls=self._tls is not None) for sock in self._sockets]

    def _create_groups(self) -> Groups:
        return Groups(
            self._hosts,
            self._catalog,
            self._info.paths.state_dir / "digests.json",
            config=self._get_config,
            versions=lambda: self._info.installation.packages,
            events=self._bus,
        )

    def _create_monitor(self, metrics: PoolMetrics) -> Monitor:
        return Monitor(self._info.instance, self._catalog, self._pool, metrics, self._activity, self._get_config)

    def _create_models_api(self) -> ModelsApi:
        return ModelsApi(
            *(self._catalog, self._pool, self._pins, self._imports, self._pulls),
            *(self._groups.distribution, self._groups.files, self._ranks),
        )

    def _create_pulls(self, power: PowerAssertion) -> PullManager:
        return PullManager(
            self._catalog,
            self._info.paths.state_dir / "pulls.json",
            options=lambda: self._config.current.pulls,
            error_body=lambda error: error_body(as_osaurus_error(error)),
            bus=self._bus,
            power=power,
        )

    def _create_pool(self, metrics: PoolMetrics, power: PowerAssertion) -> Pool:
        config = PoolConfig.from_config(self._config.current)
        launcher = self._groups.create_launcher(config)
        return Pool(config, events=self._bus, metrics=metrics, power=power, launcher=launcher)

    def _register_collectors(self) -> None:
        self._metrics.register(PoolCollector(self._pool))
        self._metrics.register(self._pressure)
        self._metrics.register(RankCollector(self._pool.snapshot, self._ranks.workers))

    def _lendable_bytes(self) -> int:
        return self._pool.lendable_bytes(self._config.current.distributed.lend_bytes)

    async def serve(self, admin_socket: socket.socket) -> None:
        """Serve until a stop is requested."""
        self._apply(self._config.current)
        await asyncio.to_thread(self._imports.sweep)
        servers = await self._start_servers(admin_socket)
        await self._hosts.start([*self._groups.routes, *self._ranks.routes])
        self._announce()
        services = (
            self._load_pinned_models(),
            self._pressure.run(),
            self._monitor.run(),
            self._info.read_installation(),
        )
        background = [asyncio.create_task(service) for service in services]
        self._pulls.start()
        await self._stop.requested.wait()
        service_manager.notify("STOPPING=1", "STATUS=finishing running requests")
        for task in background:
            task.cancel()
        self._monitor.close()
        await self._pulls.close()
        await self._shut_down(servers)

    async def _start_servers(self, admin_socket: socket.socket) -> list[HttpServer]:
        """Serve clients over TCP, and clients and the admin API on the Unix socket."""
        # Otherwise each counter has a second series with its creation time.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations
        metrics = HttpMetrics(self._metrics)
        create = functools.partial(
            create_app,
            config=self._get_config,
            admission=self._admission,
            metrics=metrics,
            activity=self._activity,
        )
        service = Service(
            self._catalog, self._pool, self._get_config, UrlFetcher().fetch, self._admission.buffered, self._activity
        )
        client_groups = [
            health_routes(),
            openai_routes(service, self._catalog, self._pool),
            responses_routes(service, self._responses, self._response_memory),
            *anthropic_routes(service, self._catalog),
            openapi_routes(APIS, self._get_config),
            RouteGroup("metrics", [Route("GET", "/metrics", metrics.show)], error_response),
            ui_routes(self._catalog, self._monitor, await asyncio.to_thread(Page.load, Mode.PUBLIC)),
        ]
        cors = Cors(self._get_server_config)
        tcp_app = create(
            [*client_groups, self._ollama_group(service, lambda: self._get_config().ollama.allow_management)],
            middlewares=self._tcp_middlewares(cors),
            response_hooks=[cors.add_headers, name_version(self._requires_key)],
        )
        socket_app = create(
            [*client_groups, self._ollama_group(service, lambda: True), self._admin_group()],
            middlewares=[*socket_middlewares(os.geteuid()), check_api_version],
            response_hooks=[add_version_headers],
        )
        apps = (tcp_app, socket_app)
        tcp_server, socket_server = (HttpServer(app, self._get_config, error_response, metrics) for app in apps)
        await tcp_server.start(self._sockets, self._tls)
        await socket_server.start([admin_socket])
        return [tcp_server, socket_server]

    def _ollama_group(self, service: Service, may_manage: Callable[[], bool]) -> RouteGroup:
        return ollama_routes(
            Generation(service, self._pool),
            Embeddings(service, self._pool),
            Models(self._catalog, self._pool),
            Management(self._catalog, self._pulls, self._models_api.remove_unused, may_manage),
        )

    def _tcp_middlewares(self, cors: Cors) -> list[Middleware]:
        """The checks of the TCP ports, outermost first. CORS answers preflight requests, which carry no API key."""
        hosts = BoundHosts([sock.getsockname()[0] for sock in self._sockets])
        return [
            trusted_hosts(self._get_server_config, hosts),
            cors.check,
            require_json_body,
            require_api_key(self._keys, self._requires_key),
        ]

    def _requires_key(self, request: web.Request) -> bool:
        return not is_static(request) and self._auth.requires_key(self._get_server_config(), request)

    def _admin_group(self) -> RouteGroup:
        tls_fault = self._tls.fault if self._tls else None
        faults = (
            self._names.fault,
            self._pins.fault,
            self._pulls.fault,
            self._keys.fault,
            self._drain.fault,
            tls_fault,
        )
        daemon = DaemonApi(
            self._info,
            endpoints=self._endpoints,
            config=self._config,
            auth=self._auth,
            catalog=self._catalog,
            pool=self._pool,
            leased=self._ranks.workers,
            pins=self._pins,
            drain=self._drain,
            hosts=self._hosts,
            log_file=self._log_file,
            startup_faults=[fault for fault in faults if fault is not None],
            reload=self._reload,
            shut_down=self._stop.requested.set,
        )
        residency = ResidencyApi(
            self._catalog, self._pool, self._pins, self._bus, self._groups.distribution, self._ranks.workers
        )
        pulls = PullsApi(self._pulls, self._catalog, self._pool)
        imports = ImportsApi(self._catalog, self._imports)
        return admin_group(
            *(daemon.routes, self._models_api.routes, imports.routes, residency.routes, pulls.routes),
            *(KeysApi(self._keys).routes, self._drain.routes, HostsApi(self._hosts).routes),
        )

    def _announce(self) -> None:
        logger.info(
            "serving",
            version=__version__,
            pid=os.getpid(),
            endpoints=self._endpoints,
            socket=str(self._info.paths.socket),
        )
        service_manager.notify("READY=1", f"STATUS=serving on {', '.join(self._endpoints)}")

    async def _load_pinned_models(self) -> None:
        """Scan the disk and load the pinned models, while clients are already served."""
        await self._catalog.refresh()
        available = {record.repo: record for record in await self._catalog.available()}
        records = [available[repo] for repo in self._pins.all if repo in available]
        for record in records:
            self._pool.pin(record, check=False)
        self._pool.load_in_background(records)

    def _reload(self) -> ConfigChange:
        """Read the configuration again, and apply it if it is usable.

        Raises:
            ConfigError: the configuration in force stays in force.
        """
        change = self._config.read_again()
        self._auth.check(change.wanted.server)
        if self._tls is not None:
            self._tls.reload(change.wanted.server)
        self._config.current = change.effective
        self._pool.configure(PoolConfig.from_config(change.effective))
        self._catalog.set_extra_roots(extra_roots(change.effective))
        self._apply(change.effective)
        return change

    def _apply(self, config: Config) -> None:
        """Apply the settings that no single service owns, at the start and after each reload."""
        log.set_level(config.log.level)
        if self._auth.exposed and not self._auth.requires_keys(config.server):
            logger.warning("other machines can connect without an API key")
        if origins.is_allowed(origins.NULL, config.server.allowed_origins):
            logger.warning("`server.allowed_origins` contains `null`, an origin that any web page can assume")

    async def _shut_down(self, servers: list[HttpServer]) -> None:
        """Stop accepting, let running requests finish within the grace period, stop the workers, close connections."""
        grace = self._get_server_config().shutdown_grace_seconds
        logger.info("shutting down", grace_seconds=grace)
        # New requests may still arrive over open connections.
        self._admission.close(lambda: ShuttingDown("the daemon is shutting down; retry later"))
        for server in servers:
            server.stop_accepting()
        self._hosts.stop_accepting()
        self._ranks.stop_accepting()
        drained = asyncio.create_task(self._pool.drain(grace))
        immediate = asyncio.create_task(self._stop.immediate.wait())
        await asyncio.wait({drained, immediate}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, immediate):
            task.cancel()
        await self._ranks.close()
        await self._pool.close()
        await asyncio.gather(*(server.close() for server in servers), self._hosts.close())
        await self._responses.close()
        logger.info("stopped")

    def _get_config(self) -> Config:
        return self._config.current

    def _get_server_config(self) -> Server:
        return self._config.current.server
