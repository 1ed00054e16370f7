"""Listening sockets that the service manager opened for us, if it did.

systemd passes them as descriptors from 3 on (sd_listen_fds(3)), launchd on request by name (launch(3)). Names are
`http` for clients and `admin` for the Unix socket.
"""

import ctypes
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from osaurusd.errors import ListenFailed

FIRST_DESCRIPTOR = 3
NAMES = ("http", "admin")

LAUNCHD_VARIABLE = "OSAURUS_LAUNCHD_SOCKETS"
"""Set in a property list that has `Sockets`; without it launchd is not asked."""

# launch(3): there are no sockets of that name in the property list.
_ENOENT = 2


@dataclass(frozen=True)
class Inherited:
    """Sockets that are open already; what is empty we open ourselves."""

    http: list[socket.socket] = field(default_factory=list)
    admin: socket.socket | None = None


def inherited(env: Mapping[str, str] = os.environ) -> Inherited:
    """The sockets that were opened for this process.

    Raises:
        ListenFailed: one of them is none that we could use; the message says which.
    """
    named = list(_from_systemd(env)) if env.get("LISTEN_PID") == str(os.getpid()) else list(_from_launchd(env))
    for name, listener in named:
        _check(name, listener)
        listener.setblocking(False)
        os.set_inheritable(listener.fileno(), False)
    admin = [listener for name, listener in named if name == "admin"]
    if len(admin) > 1:
        raise ListenFailed("the service manager passed more than one `admin` socket")
    return Inherited([listener for name, listener in named if name == "http"], admin[0] if admin else None)


def _from_systemd(env: Mapping[str, str]) -> Iterator[tuple[str, socket.socket]]:
    count = int(env.get("LISTEN_FDS", "0"))
    names = env.get("LISTEN_FDNAMES", "").split(":")
    for index in range(count):
        listener = socket.socket(fileno=FIRST_DESCRIPTOR + index)
        name = names[index] if index < len(names) else ""
        # Sockets without a name of ours are told apart by their kind.
        usual = "admin" if listener.family == socket.AF_UNIX else "http"
        yield (name if name in NAMES else usual), listener


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
        raise ListenFailed(f"launchd does not hand over the `{name}` sockets: {os.strerror(code)}")
    found = [descriptors[index] for index in range(count.value)]
    library.free(ctypes.cast(descriptors, ctypes.c_void_p))
    return found


def _check(name: str, listener: socket.socket) -> None:
    unix = listener.family == socket.AF_UNIX
    if listener.type != socket.SOCK_STREAM or unix != (name == "admin"):
        raise ListenFailed(f"the `{name}` socket that the service manager passed is of the wrong kind")
