"""Checks whether a paired host and this one can run a model together, and how fast their connection is."""

import asyncio
import time
from collections.abc import Callable, Iterator

from aiohttp import WSMsgType

from osaurusd import addresses
from osaurusd.config import Config
from osaurusd.errors import HostUnreachable, OsaurusError
from osaurusd.hosts import link
from osaurusd.hosts.client import HostClient
from osaurusd.hosts.facts import Facts
from osaurusd.hosts.registry import Host
from osaurusd.wire.hosts import ControlRoute, Difference, HostCheck, HostFacts, ListenReply, ListenRequest
from osaurusd.wire.placement import COMMON_PACKAGES

ROUND_TRIPS = 20
LATENCY_SECONDS = 15.0

MAX_CLOCK_SECONDS = 5.0
"""A larger difference makes logs of the two hosts hard to compare; nothing else depends on it."""

SLOW_LINK_BYTES_PER_SECOND = 100_000_000
"""Less than gigabit Ethernet."""


class HostChecker:
    """Checks hosts.

    Args:
        client: connects to them.
        facts: of this host.
        config: returns the configuration in force.
        endpoints: returns where this host accepts others.
    """

    def __init__(
        self, client: HostClient, facts: Facts, config: Callable[[], Config], endpoints: Callable[[], list[str]]
    ) -> None:
        self._client = client
        self._facts = facts
        self._config = config
        self._endpoints = endpoints

    async def check(self, host: Host) -> HostCheck:
        """Check a host; takes some seconds. What fails is part of the result."""
        try:
            return await self._check(host)
        except OsaurusError as error:
            return HostCheck(name=host.name, url=host.url, problems=[error.message])

    async def _check(self, host: Host) -> HostCheck:
        sent_at = time.time()
        there = await self._client.fetch(host, ControlRoute.FACTS, HostFacts)
        clock_seconds = there.time - (sent_at + time.time()) / 2
        here = await self._facts.collect(there.peer_address, "")
        latency = await self._measure_latency(host)
        link_problems, speed = await self._check_link(host, here.link_address, host.link_address or there.link_address)
        differences = list(_differences(here, there))
        return HostCheck(
            name=host.name,
            url=host.url,
            problems=[
                *_version_problems(differences),
                *_memory_problems(host, there),
                *self._backend_problems(here, there),
                *link_problems,
            ],
            warnings=list(self._warnings(clock_seconds, speed, here, there)),
            facts=there,
            latency_seconds=latency,
            bytes_per_second=speed,
            clock_seconds=clock_seconds,
            link_address=here.link_address,
            differences=differences,
        )

    async def _measure_latency(self, host: Host) -> float:
        """Return the median of some round trips."""
        durations = []
        try:
            async with (
                asyncio.timeout(LATENCY_SECONDS),
                self._client.websocket(host, ControlRoute.ECHO) as connection,
            ):
                for _ in range(ROUND_TRIPS):
                    started_at = time.perf_counter()
                    await connection.send_bytes(b"ping")
                    if (await connection.receive()).type is not WSMsgType.BINARY:
                        raise HostUnreachable(f'host "{host.name}" closed the connection that measures the latency')
                    durations.append(time.perf_counter() - started_at)
        except TimeoutError as error:
            raise HostUnreachable(
                f'host "{host.name}" did not return {ROUND_TRIPS} messages within {LATENCY_SECONDS:g} s; check its '
                "daemon and the network"
            ) from error
        return sorted(durations)[ROUND_TRIPS // 2]

    def _backend_problems(self, here: HostFacts, there: HostFacts) -> Iterator[str]:
        if self._config().distributed.backend != "jaccl":
            return
        for place, facts in (("this host", here), ("the other host", there)):
            if facts.rdma != "enabled":
                yield f'`distributed.backend` is "jaccl", but RDMA is {facts.rdma} on {place}'
        if here.system != there.system:
            yield f'`distributed.backend` is "jaccl", but the systems differ: {here.system} here, {there.system} there'

    async def _check_link(self, host: Host, here: str, there: str) -> tuple[list[str], float | None]:
        """Try the link in both directions. Return the problems, and the bytes per second."""
        for place, address in (("this host", here), (host.name, there)):
            try:
                addresses.parse_private_address(address)
            except ValueError as error:
                return [f"the link address of {place} is unusable: {error}"], None
        problems = []
        speed = await self._receive(host, here, there)
        if isinstance(speed, str):
            problems.append(f"no connection from {here} to {there} ({host.name}): {speed}")
        if (reason := await self._send(host, here, there)) is not None:
            problems.append(f"no connection from {there} ({host.name}) to {here}: {reason}")
        return problems, None if isinstance(speed, str) else speed

    async def _receive(self, host: Host, here: str, there: str) -> float | str:
        """Connect to the other host's link address. Return the bytes per second, or why it failed."""
        reply = await self._request_probe(host, ListenRequest(address=there))
        if reply.port is None:
            return reply.failure or "the host does not listen"
        try:
            return await link.receive(here, there, reply.port)
        except OSError as error:
            return link.describe(error)

    async def _send(self, host: Host, here: str, there: str) -> str | None:
        """Have the other host connect to this one's link address, and return why that failed."""
        try:
            probe = await link.LinkProbe.open(here)
        except OSError as error:
            return link.describe(error)
        try:
            request = ListenRequest(address=there, connect_to=addresses.join(here, probe.port))
            return (await self._request_probe(host, request)).failure
        finally:
            probe.close()

    async def _request_probe(self, host: Host, request: ListenRequest) -> ListenReply:
        try:
            return await self._client.fetch(host, ControlRoute.LISTEN, ListenReply, json=request)
        except HostUnreachable:
            raise
        except OsaurusError as error:
            return ListenReply(failure=error.message)

    def _warnings(self, clock_seconds: float, speed: float | None, here: HostFacts, there: HostFacts) -> Iterator[str]:
        if not self._endpoints():
            yield "the other host cannot fetch model files from this one, because `distributed.listen` is not set here"
        if abs(clock_seconds) > MAX_CLOCK_SECONDS:
            yield f"the clocks differ by {abs(clock_seconds):.0f} s, so that logs are hard to compare"
        if speed is not None and speed < SLOW_LINK_BYTES_PER_SECOND:
            yield "the network is slower than gigabit Ethernet; prefer a split into pipeline stages"
        if (here.architecture, here.chip) != (there.architecture, there.chip):
            yield "the processors differ, so that results may differ slightly from those of one host"


def _differences(here: HostFacts, there: HostFacts) -> Iterator[Difference]:
    for name in COMMON_PACKAGES:
        versions = (facts.installation.packages.get(name) for facts in (here, there))
        yield from _difference(name, *versions)
    yield from _difference("Python", here.installation.python, there.installation.python)
    yield from _difference("system", here.system, there.system)


def _difference(name: str, here: str | None, there: str | None) -> Iterator[Difference]:
    if here != there:
        yield Difference(name=name, here=here, there=there)


def _memory_problems(host: Host, there: HostFacts) -> Iterator[str]:
    if there.lendable_bytes <= 0:
        yield f'{host.name} lends no memory; run "osaurusctl config set distributed.lend_bytes BYTES" there'


def _version_problems(differences: list[Difference]) -> Iterator[str]:
    for each in differences:
        if each.name in COMMON_PACKAGES:
            here, there = each.here or "not installed", each.there or "not installed"
            yield f"{each.name} differs ({here} here, {there} there); install the same version on both hosts"
