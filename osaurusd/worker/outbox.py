"""Sending frames from any thread, at once if the daemon has room for them."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterable

from osaurusd.rpc import framing, messages


class Outbox:
    """The sending half of a worker's socket.

    The thread that has something to say writes it itself: waking the event loop for each token would cost as much as
    decoding a small model. What the socket does not take at once is sent by the loop when there is room; no caller ever
    waits.

    Args:
        fd: the socket; a descriptor of its own is made for it.
        loop: sends what is left over.
    """

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        self._socket.setblocking(False)
        self._loop = loop
        self._lock = threading.Lock()
        self._left = bytearray()

    def send(self, frames: Iterable[messages.Frame]) -> None:
        """Send frames, whole and in order. From any thread."""
        data = framing.encode(frames)
        with self._lock:
            if self._left:
                self._left += data
                return
            rest = self._write(data)
            if not rest:
                return
            self._left += rest
        with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon is gone and this process is ending
            self._loop.call_soon_threadsafe(self._loop.add_writer, self._socket, self._drain)

    def close(self) -> None:
        """Send no more."""
        with self._lock:
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _drain(self) -> None:
        with self._lock:
            self._left = bytearray(self._write(self._left))
            if not self._left:
                self._loop.remove_writer(self._socket)

    def _write(self, data: bytes | bytearray) -> bytes | bytearray:
        """What the socket did not take."""
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # the daemon is gone, which is noticed where its frames are read
