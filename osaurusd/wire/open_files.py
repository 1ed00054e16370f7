"""Passing open files from `osaurusctl` to an import process over a Unix socket.

macOS protects Downloads, Documents, Desktop and removable volumes. A terminal usually has access, or macOS asks the
user; a daemon is denied access without a prompt. The system checks the permission when a file is opened, not when it is
read, so `osaurusctl` opens the files and passes their descriptors. Passing an open folder does not suffice, because
opening a file in it is checked again.

The admin API cannot carry descriptors: aiohttp reads its sockets itself and drops ancillary data. Therefore the import
request names a socket on which `osaurusctl` listens, and the import process connects to it. Streaming the content would
also work, but a GGUF file is read several times and not in order, so it would have to be stored first.

Protocol: `osaurusctl` sends a line of JSON (`Offer`), and then, for each name, one byte with the descriptor. The import
process acknowledges each with one byte: descriptors in transit are limited, and macOS may drop those whose sender has
closed them.
"""

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from osaurusd.wire import model_files

TIMEOUT_SECONDS = 10.0
MAX_FILES = 4096
MAX_PARTS = 999

_MAX_LINE_BYTES = 4 * 1024 * 1024
_BYTE = b"."
_SOCKET_PREFIX = "fd"
_SOCKET_ID_BYTES = 4
_PART = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf)$", re.IGNORECASE)


class InvalidOffer(Exception):
    """The peer does not follow the protocol, or has closed the connection."""


class Offer(msgspec.Struct, frozen=True):
    """What is passed, by name: the files of a folder, with their subfolder, or a file with its other parts."""

    folder: bool
    names: list[str]


def part_names(name: str) -> list[str]:
    """Return the names of all parts of a split model, if `name` is that of its first part; otherwise `[name]`."""
    match = _PART.search(name)
    if match is None or int(match[1]) != 1 or not 1 < int(match[2]) <= MAX_PARTS:
        return [name]
    prefix = name[: match.start()]
    return [f"{prefix}-{number:05d}-of-{match[2]}{match[3]}" for number in range(1, int(match[2]) + 1)]


def create_socket_path(run_dir: Path) -> Path:
    """Return the path of a new socket in the folder of the daemon's socket. The caller creates and removes it."""
    # No longer than the name of the daemon's socket, whose path fits into a socket address.
    return run_dir / f"{_SOCKET_PREFIX}{secrets.token_hex(_SOCKET_ID_BYTES)}"


def remove_leftover_sockets(run_dir: Path) -> None:
    """Remove the sockets of processes that were killed. Requires the lock of the home.

    No process uses one while no daemon runs: its path is part of a request to the daemon.
    """
    for path in run_dir.glob(f"{_SOCKET_PREFIX}{'[0-9a-f]' * 2 * _SOCKET_ID_BYTES}"):
        if path.is_socket():
            path.unlink(missing_ok=True)


def send(connection: socket.socket, offer: Offer, descriptors: Sequence[int]) -> None:
    """Pass files, in the order of the names.

    Raises:
        OSError: the peer does not receive them in time, or has closed the connection.
    """
    connection.settimeout(TIMEOUT_SECONDS)
    connection.sendall(msgspec.json.encode(offer) + b"\n")
    for descriptor in descriptors:
        socket.send_fds(connection, [_BYTE], [descriptor])
        if connection.recv(1) != _BYTE:
            raise ConnectionResetError("the connection was closed")


def receive(path: str) -> tuple[Offer, list[int]]:
    """Receive files from the process that listens on the socket `path`. The caller must close the descriptors.

    Raises:
        InvalidOffer: the peer does not follow the protocol; no descriptor stays open.
        OSError: the connection failed.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(path)
        offer = _receive_offer(connection)
        descriptors: list[int] = []
        try:
            for _ in offer.names:
                descriptors.append(_receive_descriptor(connection))
                connection.sendall(_BYTE)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return offer, descriptors


def _receive_offer(connection: socket.socket) -> Offer:
    line = bytearray()
    # One byte at a time: the next one after the line carries a descriptor, which a longer read would lose.
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)) or len(line) >= _MAX_LINE_BYTES:
            raise InvalidOffer("the list of files is incomplete")
        line += byte
    try:
        offer = msgspec.json.decode(line, type=Offer)
    except msgspec.DecodeError as error:
        raise InvalidOffer(f"the list of files is invalid: {error}") from error
    names = set(offer.names)
    if len(names) != len(offer.names) or len(names) > MAX_FILES or (not names and not offer.folder):
        raise InvalidOffer("the list of files is invalid")
    if any(not _is_name(name) and not model_files.is_in_subfolder(name) for name in names):
        raise InvalidOffer("the list of files contains a path")
    return offer


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _receive_descriptor(connection: socket.socket) -> int:
    data, descriptors, flags, _ = socket.recv_fds(connection, 1, 1)
    if data == _BYTE and len(descriptors) == 1 and not flags & socket.MSG_CTRUNC:
        return descriptors[0]
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    raise InvalidOffer("a file is missing")
