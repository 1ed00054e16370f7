"""Paths of the configuration, state, models, logs, and the admin socket with its lock."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import platformdirs

APP_NAME = "osaurusd"

# struct sockaddr_un holds 104 bytes on macOS and 108 on Linux, including the final NUL. The smaller limit applies.
SOCKET_PATH_LIMIT = 103


class SocketPathTooLong(ValueError):
    """The path of the admin socket does not fit into a socket address."""


class Paths(msgspec.Struct, frozen=True):
    """Every path that the programs use. Resolving them creates nothing."""

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
        """Locked with flock while a daemon uses this home. Contains that daemon's pid."""
        return self.run_dir / "admin.sock.lock"

    @property
    def log_file(self) -> Path:
        return self.log_dir / "osaurusd.log"

    @property
    def crash_log(self) -> Path:
        """Standard error of a detached daemon. Empty unless it fails before logging works."""
        return self.log_dir / "osaurusd.stderr.log"


def resolve(env: Mapping[str, str] = os.environ) -> Paths:
    """Return the paths for this environment: under `OSAURUS_HOME` if set, else the platform's standard directories.

    The socket is in the data directory, not in a runtime directory, because a login session and a service have
    different runtime directories.

    Raises:
        SocketPathTooLong: the path of the socket exceeds 103 bytes.
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
            f"the socket path {socket} has {length} bytes, but the limit for Unix sockets is {SOCKET_PATH_LIMIT}; "
            "set OSAURUS_HOME to a shorter path"
        )
