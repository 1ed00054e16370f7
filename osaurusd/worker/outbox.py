"""Sending frames from any thread without waiting."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterable

from osaurusd.rpc import framing


class Outbox:
    """The sending half of a worker's socket.

    The calling thread writes to the socket itself: waking the event loop for each token would cost as much as decoding
    a small model. The event loop sends whatever the socket does not accept at once. No caller ever waits.

    Args:
        fd: the socket; the outbox duplicates the descriptor.
        loop: sends the remaining bytes.
    """

    def __init__(self, fd: int, loop: asyncio.AbstractEventLoop) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        self._socket.setblocking(False)
        self._loop = loop
        self._lock = threading.Lock()
        self._unsent = bytearray()

    def send(self, frames: Iterable[framing.Outgoing]) -> None:
        """Send frames, complete and in order. Safe on any thread."""
        data = framing.encode(frames)
        with self._lock:
            if self._unsent:
                self._unsent += data
                return
            unsent = self._write(data)
            if not unsent:
                return
            self._unsent += unsent
        with contextlib.suppress(RuntimeError):  # the loop is closed because the process is exiting
            self._loop.call_soon_threadsafe(self._loop.add_writer, self._socket, self._flush)

    def close(self) -> None:
        """Close the socket and drop unsent frames."""
        with self._lock:
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _flush(self) -> None:
        with self._lock:
            self._unsent = bytearray(self._write(self._unsent))
            if not self._unsent:
                self._loop.remove_writer(self._socket)

    def _write(self, data: bytes | bytearray) -> bytes | bytearray:
        """Write to the socket and return the bytes that it did not accept."""
        try:
            return data[self._socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # the daemon has exited; the reader notices
