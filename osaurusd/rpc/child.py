"""The side of one-shot child processes in `job`: send progress and a result to the daemon, and exit with it.

It imports little, because these processes start often and should start fast.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from osaurusd.rpc import framing
from osaurusd.rpc.framing import Frame

PROGRESS_INTERVAL_SECONDS = 0.1

Send = Callable[[Frame], None]


def report(fd: int, work: Callable[[Send], Frame]) -> Frame:
    """Do the work of this child process, and send the frame that it returns as the result.

    The process exits as soon as the daemon closes its end of the socket.

    Args:
        fd: the inherited socket.
        work: may send progress frames.
    """
    # A terminal's Ctrl-C reaches the whole process group, but the daemon decides when this process exits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=fd) as peer:
        finished = threading.Event()
        threading.Thread(target=_exit_with_peer, args=(peer, finished), daemon=True).start()

        def send(frame: Frame) -> None:
            try:
                peer.sendall(framing.encode([frame]))
            except OSError:
                os._exit(1)

        result = work(send)
        # Set before the result is sent: the daemon may close the socket immediately afterwards.
        finished.set()
        send(result)
        return result


def _exit_with_peer(peer: socket.socket, finished: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while peer.recv(4096):
            pass
    if not finished.is_set():
        os._exit(1)


def printable(text: str) -> str:
    """Replace the parts of file names that are not UTF-8, which JSON cannot represent."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Throttle:
    """Limits progress reports to one per `PROGRESS_INTERVAL_SECONDS`, plus the first and the last one of each stage.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage: str | None = None
        self._next_report = 0.0

    def allows(self, stage: str, done: int, total: int) -> bool:
        """Whether to send this report."""
        now = self._clock()
        if stage == self._stage and done != total and now < self._next_report:
            return False
        self._stage = stage
        self._next_report = now + PROGRESS_INTERVAL_SECONDS
        return True
