"""HTTP over a Unix socket. Ctrl-C ends every wait for a reply."""

import functools
import http.client
import os
import select
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from osaurusd.wire.admin import SOCKET_HOST

_PIPE_READ_BYTES = 4096


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__(SOCKET_HOST, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = _InterruptibleSocket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _InterruptibleSocket(socket.socket):
    """A socket whose reads Ctrl-C always interrupts.

    A signal that arrives just before a system call, or in another thread, does not interrupt the call, and Python runs
    the signal's handler only after it. Python also writes each signal to a pipe, so reads wait for data or a signal.
    """

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        if threading.current_thread() is threading.main_thread():  # the one that runs the handlers of signals
            self._wait_for_data()
        return super().recv_into(buffer, nbytes, flags)

    def _wait_for_data(self) -> None:
        data = self.fileno()
        signals, wakeup = _signal_pipe()
        previous = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        try:
            while data not in (ready := select.select([data, signals], [], [], self.gettimeout())[0]):
                if not ready:
                    raise TimeoutError("timed out")
                # The handler of Ctrl-C has raised KeyboardInterrupt before this line: these are other signals, or old.
                os.read(signals, _PIPE_READ_BYTES)
        finally:
            signal.set_wakeup_fd(previous)


@functools.cache
def _signal_pipe() -> tuple[int, int]:
    """Return the ends of the pipe for signals. It stays open: a signal may arrive at any time."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends
