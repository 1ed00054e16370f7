"""Where a daemon stays until it can serve: its Unix socket is open and says what is missing."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable

from osaurusd import log
from osaurusd.admin import context, waiting
from osaurusd.config import Config
from osaurusd.errors import ConfigError, ListenFailed, OsaurusError
from osaurusd.http import guard, listen
from osaurusd.http.app import make_app, open_app
from osaurusd.http.exposure import Exposure
from osaurusd.http.keyring import Keyring
from osaurusd.http.settings import Settings
from osaurusd.platform import service_manager
from osaurusd.wire import ports

logger = log.get_logger(__name__)

Ready = tuple[Settings, list[socket.socket]]
"""The configuration, and the sockets for clients."""

# How soon a mended file is seen.
CONFIG_POLL_SECONDS = 1.0


class Antechamber:
    """What it takes to serve, tried until it is there.

    Args:
        daemon: as status shows it.
        admin_door: the listening Unix socket; it stays open.
        read: reads and checks the configuration.
        http: sockets for clients that are open already; if there are any, none are opened.
        keyring: where other machines could connect, there must be a key in it.
    """

    def __init__(
        self,
        daemon: context.Daemon,
        admin_door: socket.socket,
        read: Callable[[], Config],
        http: list[socket.socket],
        keyring: Keyring,
    ) -> None:
        self._daemon = daemon
        self._admin_door = admin_door
        self._read = read
        self._http = http
        self._keyring = keyring
        self._retry = asyncio.Event()
        self._config: Config | None = None
        self._reason = waiting.Reason(self._reload)

    async def enter(self) -> Ready:
        """One try.

        Raises:
            OsaurusError: the configuration is wrong, the port is not to be had, or a key is needed and missing.
        """
        self._config = None
        self._config = self._read()
        server = self._config.server

        def admit(addresses: list[str]) -> None:
            Exposure(addresses, self._keyring).check(server)

        if self._http:
            admit([door.getsockname()[0] for door in self._http])
        return Settings(self._config, self._read), self._http or listen.tcp(server.host, server.port, admit)

    async def wait(self, stop: asyncio.Event) -> Ready | None:
        """Try until it works; None if `stop` is set before."""
        with contextlib.suppress(ConfigError, ListenFailed):
            return await self.enter()
        async with self._open():
            pauses = service_manager.pauses()
            while not stop.is_set():
                try:
                    return await self.enter()
                except (ConfigError, ListenFailed) as error:
                    await self._say(error)
                    # A file is cheap to read again; a port is asked for ever more rarely.
                    pause = CONFIG_POLL_SECONDS if isinstance(error, ConfigError) else next(pauses)
                await self._pause(stop, pause)
        return None

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        """Answer on the Unix socket while the block runs."""
        app = make_app(Config())
        guard.guard_socket(app, os.geteuid())
        waiting.add_routes(app)
        app[context.DAEMON] = self._daemon
        app[context.KEYRING] = self._keyring
        app[waiting.REASON] = self._reason
        # A copy, for the site closes what it serves on, and clients that come in between must only wait.
        runner = await open_app(app, [self._admin_door.dup()])
        service_manager.notify("READY=1")
        try:
            yield
        finally:
            await runner.cleanup()

    async def _say(self, error: OsaurusError) -> None:
        text = await self._explained(error)
        if text != self._reason.text:
            logger.error("not serving", reason=text)
            service_manager.notify(f"STATUS=not serving: {text}")
            self._reason.text = text

    async def _explained(self, error: OsaurusError) -> str:
        """The error, with the holder of the port if that is what it is about."""
        cause = error.__cause__
        if self._config is None or not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
            return error.message
        holder = await asyncio.to_thread(ports.holder, self._config.server.port)
        return f"{error.message}; {holder or 'a process of another user'} holds it"

    async def _pause(self, stop: asyncio.Event, seconds: float) -> None:
        self._retry.clear()
        waiters = [asyncio.create_task(event.wait()) for event in (stop, self._retry)]
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiters:
            task.cancel()

    def _reload(self) -> None:
        """Try at once.

        Raises:
            ConfigError: the configuration is still wrong.
        """
        self._read()
        self._retry.set()
