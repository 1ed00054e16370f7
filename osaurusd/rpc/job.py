"""The child's side of a process that does one job for the daemon and says over a socket how it goes."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from osaurusd.rpc import framing, messages

PROGRESS_SECONDS = 0.1

Send = Callable[[messages.Frame], None]


def report(fd: int, job: Callable[[Send], messages.Frame]) -> messages.Frame:
    """Do a job, and send the frame that it returns as the last one.

    The process ends itself as soon as the daemon has closed its end: nobody waits for the result then.

    Args:
        fd: the inherited socket.
        job: may send frames while it works.
    """
    # A terminal's Ctrl-C reaches the whole process group; the daemon decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=fd) as peer:
        finished = threading.Event()
        threading.Thread(target=_end_with, args=(peer, finished), daemon=True).start()

        def send(frame: messages.Frame) -> None:
            try:
                peer.sendall(framing.encode([frame]))
            except OSError:
                os._exit(1)

        last = job(send)
        # Set before the daemon knows, which may hang up at once.
        finished.set()
        send(last)
        return last


class Throttle:
    """Lets through the first and the last report of each stage, and between them one in `PROGRESS_SECONDS`.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._due = 0.0

    def passes(self, stage: str, done: int, total: int) -> bool:
        """Whether to send this report."""
        now = self._clock()
        if stage == self._stage and done != total and now < self._due:
            return False
        self._stage = stage
        self._due = now + PROGRESS_SECONDS
        return True


def _end_with(peer: socket.socket, finished: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(4096):
            pass
    if not finished.is_set():
        os._exit(1)
