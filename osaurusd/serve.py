"""Start the daemon: the lock, the log and the admin socket, then the prerequisites of the services."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from osaurusd import log
from osaurusd.admin.daemon import DaemonInfo
from osaurusd.admin.degraded import DegradedMode, Startup
from osaurusd.app import Daemon
from osaurusd.config import Config, LiveConfig, Log, load
from osaurusd.errors import ConfigError, OsaurusError
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.listen import listen_unix, lock_home, make_private_dir
from osaurusd.http.tls import Tls
from osaurusd.platform import service_manager
from osaurusd.platform.activation import activated_sockets
from osaurusd.pool.config import find_blas
from osaurusd.wire import open_files
from osaurusd.wire.paths import Paths, SocketPathTooLong, resolve


def main(config_file: Path | None, flags: Mapping[tuple[str, ...], object]) -> None:
    """Serve, and exit with status 1 and the reason on standard error if that is impossible.

    Args:
        config_file: None means the user's.
        flags: values from the command line by key path, such as `{("server", "port"): 8080}`.
    """
    try:
        paths = resolve()
        file = config_file or paths.config_file
        run(lambda: load(file, flags=flags), paths)
    except (OsaurusError, SocketPathTooLong) as error:
        sys.exit(f"osaurusd: {error}")


def run(read: Callable[[], Config], paths: Paths) -> None:
    """Serve until SIGTERM, SIGINT or a shutdown request.

    Under a service manager, the daemon does not exit when a prerequisite is missing: it waits for its home, a valid
    configuration and its port, and reports the reason. In the foreground, a missing prerequisite is an error.

    Args:
        read: reads the configuration, at the start and on each reload.
        paths: where the daemon keeps its files.

    Raises:
        OsaurusError: the configuration is invalid, the home or the port is in use, or a path is not private.
    """

    def read_and_check() -> Config:
        config = read()
        find_blas(config.worker.blas)
        Tls.from_config(config.server)
        return config

    # Everything that the daemon writes is private to its user. Set before there are threads, which share the mask.
    os.umask(0o077)
    service_manager.raise_file_limit()
    if service_manager.is_supervised():
        for descriptor in (1, 2):
            service_manager.rotate_crash_log(descriptor)
        service_manager.retry_until_success(lambda: _run_once(read_and_check, paths, supervised=True))
    else:
        read_and_check()
        _run_once(read_and_check, paths, supervised=False)


def _run_once(read: Callable[[], Config], paths: Paths, *, supervised: bool) -> None:
    console = None if service_manager.captures_stderr() else sys.stderr
    with lock_home(paths.lock, _report_waiting if supervised else None):
        for directory in (paths.log_dir, paths.state_dir):
            make_private_dir(directory)
        # Often a link to a larger volume, so its mode is not changed.
        paths.models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_files.remove_leftover_sockets(paths.run_dir)
        with log.configured(_log_level(read), paths.log_file, console) as log_file:
            asyncio.run(_start(read, paths, log_file, supervised=supervised))


def _report_waiting(reason: str) -> None:
    service_manager.print_status(f"{reason}; waiting for it to exit")
    service_manager.notify(f"STATUS={reason}")


def _log_level(read: Callable[[], Config]) -> str:
    try:
        return read().log.level
    except ConfigError:
        return Log().level


async def _start(read: Callable[[], Config], paths: Paths, log_file: log.LogFile, *, supervised: bool) -> None:
    """Open the admin socket, obtain the prerequisites, and serve until a stop is requested."""
    stop = service_manager.StopRequest()
    inherited = activated_sockets()
    watchdog = asyncio.create_task(service_manager.feed_watchdog())
    with contextlib.ExitStack() as stack:
        admin_socket = inherited.admin or stack.enter_context(listen_unix(paths.socket))
        info = DaemonInfo(paths)
        keys = ApiKeys(paths.state_dir / "keys.json")
        startup = Startup(read, inherited.http, keys)
        try:
            if supervised:
                prerequisites = await DegradedMode(startup, info, admin_socket, keys, stop.requested).run()
            else:
                prerequisites = await startup.attempt_once()
            if prerequisites is not None:
                for sock in prerequisites.sockets:
                    stack.callback(sock.close)
                daemon = Daemon(prerequisites, LiveConfig(prerequisites.config, read), info, keys, log_file, stop)
                await daemon.serve(admin_socket)
        finally:
            service_manager.notify("STOPPING=1", "STATUS=stopping")
            watchdog.cancel()
    stop.ignore_signals()
