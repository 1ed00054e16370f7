"""Socket activation: listening sockets that the service manager passes to the daemon.

systemd passes them as file descriptors from 3 on (sd_listen_fds(3)), launchd by name on request (launch(3)). The names
are `http` for TCP clients and `admin` for the Unix socket.
"""

import ctypes
import os
import socket
import sys
from collections.abc import Iterator, Mapping

import msgspec

from osaurusd.errors import ListenFailed

FIRST_DESCRIPTOR = 3
NAMES = ("http", "admin")

LAUNCHD_VARIABLE = "OSAURUS_LAUNCHD_SOCKETS"
"""Set by a property list that has `Sockets`; without it the daemon does not request any from launchd."""

# launch(3): the property list has no sockets of that name.
_ENOENT = 2


class ActivatedSockets(msgspec.Struct, frozen=True):
    """Listening sockets; the daemon opens those that are missing."""

    http: list[socket.socket] = msgspec.field(default_factory=list)
    admin: socket.socket | None = None


def activated_sockets(env: Mapping[str, str] = os.environ) -> ActivatedSockets:
    """Return the sockets that were passed to this process.

    Raises:
        ListenFailed: a socket is of the wrong kind, or launchd reports an error.
    """
    named = list(_from_systemd(env)) if env.get("LISTEN_PID") == str(os.getpid()) else list(_from_launchd(env))
    for name, listener in named:
        _check(name, listener)
        listener.setblocking(False)
        os.set_inheritable(listener.fileno(), False)
    admin = [listener for name, listener in named if name == "admin"]
    if len(admin) > 1:
        raise ListenFailed("the service manager passed more than one `admin` socket")
    return ActivatedSockets([listener for name, listener in named if name == "http"], admin[0] if admin else None)


def _from_systemd(env: Mapping[str, str]) -> Iterator[tuple[str, socket.socket]]:
    count = int(env.get("LISTEN_FDS", "0"))
    names = env.get("LISTEN_FDNAMES", "").split(":")
    for index in range(count):
        listener = socket.socket(fileno=FIRST_DESCRIPTOR + index)
        name = names[index] if index < len(names) else ""
        default = "admin" if listener.family == socket.AF_UNIX else "http"
        yield (name if name in NAMES else default), listener


def _from_launchd(env: Mapping[str, str]) -> Iterator[tuple[str, socket.socket]]:
    if sys.platform != "darwin" or not env.get(LAUNCHD_VARIABLE):
        return
    for name in NAMES:
        for descriptor in _launch_activate_socket(name):
            yield name, socket.socket(fileno=descriptor)


def _launch_activate_socket(name: str) -> list[int]:
    library = ctypes.CDLL("/usr/lib/libSystem.B.dylib")
    descriptors, count = ctypes.POINTER(ctypes.c_int)(), ctypes.c_size_t()
    code = library.launch_activate_socket(name.encode(), ctypes.byref(descriptors), ctypes.byref(count))
    if code == _ENOENT:
        return []
    if code:
        raise ListenFailed(f"launchd did not pass the `{name}` sockets: {os.strerror(code)}")
    result = [descriptors[index] for index in range(count.value)]
    library.free(ctypes.cast(descriptors, ctypes.c_void_p))
    return result


def _check(name: str, listener: socket.socket) -> None:
    is_unix = listener.family == socket.AF_UNIX
    if listener.type != socket.SOCK_STREAM or is_unix != (name == "admin"):
        raise ListenFailed(f"the service manager passed a socket of the wrong kind as `{name}`")
