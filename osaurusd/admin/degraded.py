"""Degraded mode: the daemon does not serve yet, but its Unix socket is up and reports the reason."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from osaurusd import log
from osaurusd.admin.daemon import DaemonInfo
from osaurusd.admin.keys import KeysApi
from osaurusd.admin.routes import PREFIX, add_version_headers, admin_group, check_api_version, get, post
from osaurusd.config import Config
from osaurusd.errors import ConfigError, ListenFailed, NotServing, OsaurusError
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.app import create_app, socket_middlewares
from osaurusd.http.auth import AuthPolicy
from osaurusd.http.errors import error_response
from osaurusd.http.json import json_response
from osaurusd.http.listen import listen_tcp
from osaurusd.http.server import HttpServer
from osaurusd.platform import service_manager
from osaurusd.wire import admin as wire
from osaurusd.wire import ports
from osaurusd.wire.admin import ReloadReply, ShutdownReply

logger = log.get_logger(__name__)

CONFIG_RETRY_SECONDS = 1.0
"""How soon a corrected configuration is noticed. Reading it is cheap, so the delay does not grow."""


class Prerequisites(msgspec.Struct, frozen=True):
    """What the daemon needs to serve clients: a valid configuration, and TCP sockets with their auth policy."""

    config: Config
    sockets: list[socket.socket]
    auth: AuthPolicy


class Startup:
    """Obtains the prerequisites of serving.

    Args:
        read: reads and checks the configuration.
        inherited: TCP sockets opened by the service manager. If there are any, none are opened here.
        keys: must not be empty if other machines can connect.
    """

    def __init__(self, read: Callable[[], Config], inherited: Sequence[socket.socket], keys: ApiKeys) -> None:
        self.read = read
        self._inherited = list(inherited)
        self._keys = keys
        self._port: int | None = None

    def attempt(self) -> Prerequisites:
        """Try once.

        Raises:
            ConfigError: the configuration is invalid, or an API key is required and there is none.
            ListenFailed: the port is not available.
        """
        self._port = None
        config = self.read()
        self._port = config.server.port

        def check_keys(addresses: Sequence[str]) -> None:
            AuthPolicy(addresses, self._keys).check(config.server)

        if self._inherited:
            check_keys(_addresses(self._inherited))
        sockets = self._inherited or listen_tcp(config.server.host, config.server.port, check_keys)
        return Prerequisites(config, sockets, AuthPolicy(_addresses(sockets), self._keys))

    async def attempt_once(self) -> Prerequisites:
        """Try once, and explain a failure; see `attempt`."""
        try:
            return self.attempt()
        except ListenFailed as error:
            raise ListenFailed(await self.explain(error)) from error.__cause__

    async def explain(self, error: OsaurusError) -> str:
        """Return the message of a failed attempt, with the process that uses the port if that is the reason."""
        cause = error.__cause__
        if self._port is None or not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
            return error.message
        holder = await asyncio.to_thread(ports.holder, self._port)
        return f"{error.message}; used by {holder or 'a process of another user'}"


class DegradedMode:
    """Retries the startup until it succeeds, and serves a reduced admin API meanwhile.

    Args:
        startup: what to retry.
        info: the identity of the daemon, for its status.
        admin_socket: the listening Unix socket. It stays open.
        keys: can be listed, created and revoked. A new key may be what the startup needs.
        stop: ends the wait; set by a shutdown request.
    """

    def __init__(
        self, startup: Startup, info: DaemonInfo, admin_socket: socket.socket, keys: ApiKeys, stop: asyncio.Event
    ) -> None:
        self._startup = startup
        self._info = info
        self._admin_socket = admin_socket
        self._keys = KeysApi(keys, on_create=self._retry_now)
        self._stop = stop
        self._retry = asyncio.Event()
        self._reason = ""

    async def run(self) -> Prerequisites | None:
        """Return the prerequisites once they are available; None if a stop is requested first."""
        with contextlib.suppress(ConfigError, ListenFailed):
            return self._startup.attempt()
        await self._info.read_installation()
        async with self._serve():
            delays = service_manager.retry_delays()
            while not self._stop.is_set():
                try:
                    return self._startup.attempt()
                except (ConfigError, ListenFailed) as error:
                    self._report(await self._startup.explain(error))
                    await self._wait(CONFIG_RETRY_SECONDS if isinstance(error, ConfigError) else next(delays))
        return None

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        """Serve the reduced admin API while the block runs."""
        routes = [
            get(wire.Route.STATUS, self._show_status),
            post(wire.Route.RELOAD, self._reload),
            post(wire.Route.SHUTDOWN, self._shut_down),
            *self._keys.routes,
        ]
        served = {PREFIX + route.path for route in routes}
        app = create_app(
            [admin_group(routes)],
            Config,
            middlewares=[*socket_middlewares(os.geteuid()), check_api_version, self._reject_except(served)],
            response_hooks=[add_version_headers],
        )
        server = HttpServer(app, Config, error_response)
        # The server closes its sockets. A duplicate keeps the original open, and clients that connect between the
        # degraded and the normal server wait in its backlog.
        await server.start([self._admin_socket.dup()])
        service_manager.notify("READY=1")
        try:
            yield
        finally:
            await server.close()

    def _reject_except(self, served: set[str]) -> Middleware:
        @web.middleware
        async def reject(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path not in served:
                raise NotServing(f"osaurusd is not serving: {self._reason}")
            return await handler(request)

        return reject

    def _report(self, reason: str) -> None:
        if reason != self._reason:
            logger.error("not serving", reason=reason)
            service_manager.notify(f"STATUS=not serving: {reason}")
            self._reason = reason

    async def _wait(self, seconds: float) -> None:
        """Wait for a retry request or a shutdown request, at most `seconds`."""
        self._retry.clear()
        tasks = [asyncio.create_task(event.wait()) for event in (self._stop, self._retry)]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _retry_now(self) -> None:
        self._retry.set()

    async def _show_status(self, _: web.Request) -> web.Response:
        return json_response(self._info.status(faults=[self._reason]))

    async def _reload(self, _: web.Request) -> web.Response:
        """Retry now.

        Raises:
            ConfigError: the configuration is still invalid.
        """
        self._startup.read()
        self._retry_now()
        return json_response(ReloadReply(applied=[], needs_restart=[]))

    async def _shut_down(self, _: web.Request) -> web.Response:
        self._stop.set()
        return json_response(ShutdownReply(pid=os.getpid()), status=202)


def _addresses(sockets: Sequence[socket.socket]) -> list[str]:
    return [sock.getsockname()[0] for sock in sockets]
