"""Where everything lies: config, state, models, logs, the admin socket and its lock."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

APP_NAME = "osaurusd"

# struct sockaddr_un holds 104 bytes on macOS and 108 on Linux, the closing NUL included; the smaller one binds.
SOCKET_PATH_LIMIT = 103


class SocketPathTooLong(ValueError):
    """The admin socket's path does not fit into a socket address."""


@dataclass(frozen=True)
class Paths:
    """Every path that the programs use; nothing here exists until somebody makes it."""

    config_file: Path
    state_dir: Path
    models_dir: Path
    log_dir: Path
    run_dir: Path

    @property
    def socket(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def lock(self) -> Path:
        """Held with flock while a daemon runs on this home; holds that daemon's pid."""
        return self.run_dir / "admin.sock.lock"

    @property
    def log_file(self) -> Path:
        return self.log_dir / "osaurusd.log"

    @property
    def crash_log(self) -> Path:
        """What a detached daemon writes to standard error: nothing, unless it fails before logging works."""
        return self.log_dir / "osaurusd.stderr.log"


def resolve(env: Mapping[str, str] = os.environ) -> Paths:
    """All paths for this environment: under `OSAURUS_HOME` if set, else where the platform wants them.

    The socket lies under the data directory, not a runtime directory: a login session and a service see different
    runtime directories.

    Raises:
        SocketPathTooLong: the socket's path exceeds 103 bytes; the message names path and limit.
    """
    if home := env.get("OSAURUS_HOME"):
        root = Path(home).expanduser().absolute()
        paths = Paths(root / "config.toml", root / "state", root / "models", root / "logs", root / "run")
    else:
        dirs = platformdirs.PlatformDirs(APP_NAME, appauthor=False)
        data = dirs.user_data_path
        paths = Paths(
            dirs.user_config_path / "config.toml",
            dirs.user_state_path / "state",
            data / "models",
            dirs.user_log_path,
            data / "run",
        )
    _check_socket(paths.socket)
    return paths


def _check_socket(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_LIMIT:
        raise SocketPathTooLong(
            f"the socket path {socket} is {length} bytes long, and a Unix socket's may have {SOCKET_PATH_LIMIT}; "
            "set OSAURUS_HOME to a shorter directory"
        )
