"""The paired hosts, stored in one file."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from osaurusd.errors import HostNameTaken, HostNotFound, InternalError
from osaurusd.log import get_logger
from osaurusd.platform.state_file import StateFile
from osaurusd.wire.hosts import HostName

log = get_logger(__name__)

VERSION = 1


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A paired host.

    Attributes:
        name: how this host calls it; unique, regardless of case.
        url: where its daemon accepts paired hosts; empty if it does not listen.
        certificate: as PEM.
        fingerprint: SHA-256 of the certificate.
        link_address: its address on the fast network; None if it determines the address itself.
        added_at: when the hosts were paired, in Unix seconds.
    """

    name: HostName
    url: str
    certificate: str
    fingerprint: str
    link_address: str | None = None
    added_at: float


class _State(msgspec.Struct, kw_only=True):
    """The content of the file."""

    version: int = VERSION
    hosts: list[Host] = []


class HostRegistry:
    """The paired hosts. Their file is written whenever they change.

    Args:
        file: an unreadable file is moved aside and reported in `fault`; no host is then paired.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file = StateFile(file, _State())
        self._hosts = self._file.read().hosts
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[], Awaitable[None]]] = []
        self.fault = self._file.fault

    def all(self) -> list[Host]:
        """All hosts, oldest first."""
        return [*self._hosts]

    def get(self, name: str) -> Host:
        """Return a host.

        Raises:
            HostNotFound: no paired host has this name.
        """
        host = self.find(name)
        if host is None:
            known = ", ".join(each.name for each in self._hosts) or "none"
            raise HostNotFound(
                f'no host "{name}" is paired (paired hosts: {known}); run "osaurusctl host add {name} URL"',
                param="name",
            )
        return host

    def find(self, name: str) -> Host | None:
        return next((host for host in self._hosts if host.name.lower() == name.lower()), None)

    def by_fingerprint(self, fingerprint: str) -> Host | None:
        return next((host for host in self._hosts if host.fingerprint == fingerprint), None)

    def on_change(self, listener: Callable[[], Awaitable[None]]) -> None:
        """Have a function called after every change; `add` and `remove` wait for it."""
        self._listeners.append(listener)

    def check_name(self, name: str, fingerprint: str = "") -> None:
        """Check that a name is free, or that of the host with this fingerprint.

        Raises:
            HostNameTaken: it is another host's.
        """
        owner = self.find(name)
        if owner is not None and owner.fingerprint != fingerprint:
            raise HostNameTaken(
                f'a host "{owner.name}" is paired already; choose another name, or run "osaurusctl host rm '
                f'{owner.name}" first',
                param="name",
            )

    async def add(self, host: Host) -> None:
        """Add a host. If it was paired before, under whatever name, its earlier entry is replaced.

        Raises:
            HostNameTaken: another host has the name.
            InternalError: the file cannot be written; nothing changes.
        """
        async with self._lock:
            self.check_name(host.name, host.fingerprint)
            others = [each for each in self._hosts if each.fingerprint != host.fingerprint]
            try:
                await self._write([*others, host])
            except OSError as error:
                raise InternalError(f"cannot add the host: {self._path} cannot be written: {error}") from error
            await self._replace([*others, host])
        log.info("host paired", host=host.name, url=host.url, fingerprint=host.fingerprint)

    async def remove(self, name: str) -> Host:
        """Stop trusting a host immediately.

        Raises:
            HostNotFound: no paired host has this name.
            InternalError: the change could not be saved; a restart pairs the host again.
        """
        async with self._lock:
            removed = self.get(name)
            remaining = [host for host in self._hosts if host is not removed]
            await self._replace(remaining)
            log.info("host removed", host=removed.name)
            try:
                await self._write(remaining)
            except OSError as error:
                raise InternalError(
                    f"the host is removed until the daemon restarts: {self._path} cannot be written: {error}"
                ) from error
        return removed

    async def _write(self, hosts: list[Host]) -> None:
        await asyncio.to_thread(self._file.write, _State(hosts=hosts))

    async def _replace(self, hosts: list[Host]) -> None:
        self._hosts = hosts
        for listener in self._listeners:
            await listener()
