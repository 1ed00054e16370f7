"""Who is at the other end of a Unix socket."""

import socket
import struct
import sys

from aiohttp import web

# struct ucred of Linux: pid, uid, gid.
_UCRED = struct.Struct("3i")

# struct xucred of macOS (sys/ucred.h): version, uid, and more that does not matter here. unix(4) names level 0
# (SOL_LOCAL) and option 1 (LOCAL_PEERCRED).
_XUCRED_HEAD = struct.Struct("2I")
_XUCRED_BYTES = 76
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


def uid(request: web.Request) -> int | None:
    """The user id of the process that connected, or None if the connection is gone."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    return None if connection is None else socket_uid(connection)


def socket_uid(connection: socket.socket) -> int:
    """The user id at the other end of a connected Unix socket.

    Raises:
        OSError: the connection is gone.
    """
    if sys.platform == "darwin":
        _, owner = _XUCRED_HEAD.unpack_from(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES))
        return int(owner)
    _, owner, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(owner)
