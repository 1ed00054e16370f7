"""HTTP over a Unix socket. Ctrl-C ends every wait for the daemon."""

import contextlib
import functools
import http.client
import os
import selectors
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from osaurusd.wire.admin import SOCKET_HOST

_PIPE_READ_BYTES = 4096

_CONNECT_PAUSE_SECONDS = 0.05


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
    """A socket whose waits Ctrl-C always interrupts.

    A signal that arrives just before a system call, or in another thread, does not interrupt the call, and Python runs
    the signal's handler only after it. Python also writes each signal to a pipe, so this waits for the socket or a
    signal, and only then makes a call that does not block. The timeout applies to each wait.
    """

    def connect(self, address: Any, /) -> None:
        if not _runs_signal_handlers():
            super().connect(address)
            return
        timeout = self.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        self.setblocking(False)
        try:
            while not self._try_connect(address):
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError("timed out")
                # The backlog of the listener is full, and no event tells when it is not.
                _wait_for_signal(_CONNECT_PAUSE_SECONDS)
        finally:
            self.settimeout(timeout)

    def _try_connect(self, address: Any) -> bool:
        try:
            super().connect(address)
        except BlockingIOError:
            return False
        return True

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        if not _runs_signal_handlers():
            super().sendall(data, flags)
            return
        remaining = memoryview(data).cast("B")
        while remaining:
            self._wait(selectors.EVENT_WRITE)
            with contextlib.suppress(BlockingIOError):
                remaining = remaining[super().send(remaining, flags | socket.MSG_DONTWAIT) :]

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        if _runs_signal_handlers():
            self._wait(selectors.EVENT_READ)
        return super().recv_into(buffer, nbytes, flags)

    def _wait(self, event: int) -> None:
        """Wait until the socket is ready.

        Raises:
            TimeoutError: it was not in time.
        """
        # `select` accepts no descriptor over 1023; a command that passes files has more.
        with selectors.PollSelector() as selector:
            selector.register(self, event)
            while self not in (ready := _select(selector, self.gettimeout())):
                if not ready:
                    raise TimeoutError("timed out")


def _runs_signal_handlers() -> bool:
    """Whether this thread is the one in which Python runs the handlers of signals."""
    return threading.current_thread() is threading.main_thread()


def _wait_for_signal(seconds: float) -> None:
    """Wait for a signal, but not longer than a time in seconds."""
    with selectors.PollSelector() as selector:
        _select(selector, seconds)


def _select(selector: selectors.PollSelector, timeout: float | None) -> list[Any]:
    """Return what is ready, which includes the pipe after a signal; nothing after the timeout in seconds."""
    signals, wakeup = _signal_pipe()
    selector.register(signals, selectors.EVENT_READ)
    previous = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        ready = [key.fileobj for key, _ in selector.select(timeout)]
        if signals in ready:
            # The handler of Ctrl-C has raised KeyboardInterrupt before this line: these are other signals, or old.
            os.read(signals, _PIPE_READ_BYTES)
        return ready
    finally:
        signal.set_wakeup_fd(previous)
        selector.unregister(signals)


@functools.cache
def _signal_pipe() -> tuple[int, int]:
    """Return the ends of the pipe for signals. It stays open: a signal may arrive at any time."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends
