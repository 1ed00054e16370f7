"""This host among the paired ones: its parts, and their start and end."""

import asyncio
import functools
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from osaurusd import addresses
from osaurusd.config import Config
from osaurusd.errors import InvalidRequest, ListenFailed, OsaurusError
from osaurusd.events import EventBus
from osaurusd.hosts import pairing
from osaurusd.hosts.check import HostChecker
from osaurusd.hosts.client import HostClient
from osaurusd.hosts.codes import CODE_SECONDS, CodeOffer, normalize_code
from osaurusd.hosts.facts import Facts
from osaurusd.hosts.identity import IdentityFile
from osaurusd.hosts.machine import own_name, private_addresses
from osaurusd.hosts.registry import Host, HostRegistry
from osaurusd.hosts.server import ControlServer
from osaurusd.http.listen import listen_tcp
from osaurusd.http.routes import Route
from osaurusd.log import get_logger
from osaurusd.platform.service_manager import retry_delays
from osaurusd.wire.diagnosis import HostsDiagnosis
from osaurusd.wire.hosts import AddHostRequest, ControlRoute, HostCheck, HostFacts, PairingCode
from osaurusd.wire.residency import EventKind

log = get_logger(__name__)

DIAGNOSIS_SECONDS = 5.0
"""How long `osaurusctl doctor` waits for a host."""

_ANY = ("0.0.0.0", "::")


class Hosts:
    """The paired hosts, the client and the server for connections with them, and pairing.

    Until a host is paired or `distributed.listen` is set, this host has no identity, opens no port and no connection.

    Args:
        state_dir: has the files of the identity and the registry.
        config: returns the configuration in force.
        bus: publishes which hosts are paired and removed.
        lendable_bytes: returns how much memory models of other hosts may use now.

    Attributes:
        identity, registry, client: for those who talk to other hosts.
        facts: what this host tells others about itself.
    """

    def __init__(
        self, state_dir: Path, config: Callable[[], Config], bus: EventBus, lendable_bytes: Callable[[], int]
    ) -> None:
        self._config = config
        self._bus = bus
        self.identity = IdentityFile(state_dir / "host.pem")
        self._offer = CodeOffer()
        self._server: ControlServer | None = None
        self._sockets: list[socket.socket] = []
        self._starting: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self.registry = HostRegistry(state_dir / "hosts.json")
        self.client = HostClient(self.identity, self.registry)
        self.facts = Facts(config, lendable_bytes)
        self._checker = HostChecker(self.client, self.facts, config, lambda: self.endpoints)

    @property
    def faults(self) -> Iterator[str]:
        """Current problems, one line each."""
        return (fault for fault in (self.registry.fault, self._fault) if fault is not None)

    @property
    def endpoints(self) -> list[str]:
        """Where paired hosts can connect now: IP addresses with ports."""
        return [addresses.join(*sock.getsockname()[:2]) for sock in self._sockets]

    async def start(self, routes: Sequence[Route]) -> None:
        """Start to accept paired hosts, if the configuration says so.

        The network of other hosts may appear later than this one starts, so a failure is a fault, and is retried.

        Args:
            routes: what paired hosts can request besides the facts, with full paths.
        """
        listen = self._config().distributed.listen
        all_routes = [*self.facts.routes, *routes]
        if listen and not await self._start_server(listen, all_routes):
            self._starting = asyncio.create_task(self._retry(listen, all_routes))

    def stop_accepting(self) -> None:
        """Accept no more connections; open ones continue."""
        if self._starting is not None:
            self._starting.cancel()
        if self._server is not None:
            self._server.stop_accepting()

    async def close(self) -> None:
        """Close all connections."""
        self.stop_accepting()
        self.facts.close()
        if self._server is not None:
            await self._server.close()
        await self.client.close()

    async def offer_code(self) -> PairingCode:
        """Offer a new pairing code, in place of an earlier one.

        Raises:
            InvalidRequest: this host does not accept connections.
        """
        if self._server is None:
            raise InvalidRequest(
                self._fault
                or "this host accepts no other hosts: set `distributed.listen` to its IP address and a port, such as "
                '10.0.0.1:8444, and run "osaurusctl restart"'
            )
        identity = await self.identity.get()
        return PairingCode(
            code=self._offer.renew(),
            urls=[f"https://{endpoint}" for endpoint in self._reachable_endpoints()],
            fingerprint=identity.fingerprint,
            seconds=CODE_SECONDS,
        )

    async def add(self, request: AddHostRequest) -> Host:
        """Pair with another host, which offers a code.

        Raises:
            InvalidRequest: a field is invalid; `param` names it.
            HostNameTaken: a name is another host's.
            HostUnreachable, PairingFailed: see `pairing.pair`.
        """
        code = normalize_code(request.code)
        _check("url", addresses.parse_url, request.url)
        if request.link_address is not None:
            _check("link_address", addresses.parse_private_address, request.link_address)
        self.registry.check_name(request.name)
        identity = await self.identity.get()
        initiator = pairing.Initiator(identity, request.own_name or own_name(), self._own_endpoint())
        host = await pairing.pair(request.name, request.url, code, request.link_address, initiator)
        await self.registry.add(host)
        self._report_pairing(host)
        return host

    async def remove(self, name: str) -> Host:
        """Stop trusting a host, and end the connections with it.

        Raises:
            HostNotFound: no paired host has this name.
        """
        host = await self.registry.remove(name)
        self._bus.publish(EventKind.HOST_REMOVED, host=host.name)
        return host

    async def check(self, name: str | None) -> list[HostCheck]:
        """Check the connection to a host, or to all hosts, one after the other, since they may share a network.

        Raises:
            HostNotFound: no paired host has this name.
        """
        hosts = self.registry.all() if name is None else [self.registry.get(name)]
        return [await self._checker.check(host) for host in hosts]

    async def diagnose(self) -> HostsDiagnosis:
        """Find out whether this host accepts others, and whether they respond."""
        # A host without a URL cannot be asked.
        hosts = [host for host in self.registry.all() if host.url]
        replies = await asyncio.gather(*(self._ask(host) for host in hosts))
        unreachable = {host.name: reply for host, reply in zip(hosts, replies, strict=True) if isinstance(reply, str)}
        links = {
            host.name: _problem_of_link(host.link_address or reply.link_address)
            for host, reply in zip(hosts, replies, strict=True)
            if isinstance(reply, HostFacts)
        }
        return HostsDiagnosis(
            listen=self._config().distributed.listen,
            endpoints=self.endpoints,
            fault=self._fault,
            unreachable=unreachable,
            unusable_links={name: problem for name, problem in links.items() if problem},
            hosts=len(hosts),
        )

    async def _ask(self, host: Host) -> HostFacts | str:
        """Return the facts of a host, or why it does not respond."""
        try:
            async with asyncio.timeout(DIAGNOSIS_SECONDS):
                return await self.client.fetch(host, ControlRoute.FACTS, HostFacts)
        except TimeoutError:
            return f"no response within {DIAGNOSIS_SECONDS:g} s"
        except OsaurusError as error:
            return error.message

    async def _retry(self, listen: str, routes: Sequence[Route]) -> None:
        for seconds in retry_delays():
            await asyncio.sleep(seconds)
            if await self._start_server(listen, routes):
                return

    async def _start_server(self, listen: str, routes: Sequence[Route]) -> bool:
        """Start the server, and return whether that succeeded. If not, the reason is a fault."""
        try:
            identity = await self.identity.get()
            sockets = _listen(listen)
        except OsaurusError as error:
            self._report_fault(error.message)
            return False
        pair = functools.partial(
            pairing.answer,
            identity=identity,
            offer=self._offer,
            registry=self.registry,
            on_paired=self._report_pairing,
        )
        server = ControlServer(identity, self.registry, routes, config=self._config, pair=pair)
        await server.start(sockets)
        self._server, self._sockets, self._fault = server, sockets, None
        log.info("accepting paired hosts", endpoints=self.endpoints, fingerprint=identity.fingerprint)
        return True

    def _report_fault(self, reason: str) -> None:
        if self._fault != reason:
            log.error("other hosts are not accepted", reason=reason)
        self._fault = reason

    def _report_pairing(self, host: Host) -> None:
        self._bus.publish(EventKind.HOST_PAIRED, host=host.name)

    def _own_endpoint(self) -> str:
        """Return where this host accepts others, for `pairing.Claim`."""
        for sock in self._sockets:
            address, port = sock.getsockname()[:2]
            return f":{port}" if address in _ANY else addresses.join(address, port)
        return ""

    def _reachable_endpoints(self) -> list[str]:
        """Return the endpoints, with this machine's private addresses in place of the wildcard."""
        reachable = []
        for sock in self._sockets:
            address, port = sock.getsockname()[:2]
            own = private_addresses(sock.family) if address in _ANY else [address]
            reachable += [addresses.join(each, port) for each in own]
        return reachable


def _listen(endpoint: str) -> list[socket.socket]:
    address, port = addresses.parse_endpoint(endpoint)
    try:
        return listen_tcp(str(address), port)
    except ListenFailed as error:
        cause = error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else error.message
        raise ListenFailed(f"`distributed.listen`: cannot listen on {endpoint}: {reason}") from error


def _check(field: str, parse: Callable[[str], object], value: str) -> None:
    try:
        parse(value)
    except ValueError as error:
        raise InvalidRequest(f"`{field}`: {error}", param=field) from error


def _problem_of_link(address: str) -> str | None:
    """Return why an address cannot carry tensors."""
    try:
        addresses.parse_private_address(address)
    except ValueError as error:
        return str(error)
    return None
