"""`python -m osaurusd.worker.convert --fd N SOURCE DEST`: imports one model and says over a socket how it goes."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from osaurusd import ipc
from osaurusd.errors import ImportFailed

PROGRESS_SECONDS = 0.1


class Reporter:
    """Sends progress, at most one frame in `PROGRESS_SECONDS` besides the first and the last of each stage.

    Args:
        send: takes the frames.
        clock: seconds, from any start.
    """

    def __init__(self, send: Callable[[ipc.Frame], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._stage = ""
        self._due = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = self._clock()
        if stage != self._stage or done == total or now >= self._due:
            self._stage = stage
            self._due = now + PROGRESS_SECONDS
            self._send(ipc.Progress(stage=stage, done=done, total=total))


def main(arguments: list[str]) -> int:
    """Imports the model that the command line names; 0 if that succeeded, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.worker.convert")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket that takes the frames")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    # A terminal's Ctrl-C reaches the whole process group; the daemon decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=options.fd) as peer:
        finished = threading.Event()
        threading.Thread(target=_end_with, args=(peer, finished), daemon=True).start()
        return _import(peer, finished, options.source, options.dest)


def _import(peer: socket.socket, finished: threading.Event, source: Path, dest: Path) -> int:
    # Imported late so that the death of the daemon is noticed while NumPy and tokenizers load.
    from osaurusd.worker.convert.run import import_model  # noqa: PLC0415

    def send(frame: ipc.Frame) -> None:
        try:
            peer.sendall(ipc.encode([frame]))
        except OSError:
            os._exit(1)

    try:
        import_model(source, dest, Reporter(send))
    except ImportFailed as error:
        finished.set()
        send(ipc.ImportFailure(message=error.message))
        return 1
    # Set before the daemon knows, which may hang up at once.
    finished.set()
    send(ipc.Imported())
    return 0


def _end_with(peer: socket.socket, finished: threading.Event) -> None:
    """Ends this process once the other end of the socket is closed, unless all is done: nobody waits for the result."""
    with contextlib.suppress(OSError):
        while peer.recv(4096):
            pass
    if not finished.is_set():
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
