"""An importer that does as its source says, in place of `python -m osaurusd.imports.worker`.

The source is a JSON list of steps, each a name and its arguments: the methods of `Steps`.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from osaurusd.imports import messages
from osaurusd.rpc import framing


class Steps:
    """What sources may ask for, on this socket and in this destination folder."""

    def __init__(self, peer, dest):
        self._peer = peer
        self._dest = dest

    def progress(self, stage, done, total):
        """Tell progress; `{pid}` in the stage is this process's id."""
        self._send(messages.Progress(stage=stage.format(pid=os.getpid()), done=done, total=total))

    def copy(self, folder):
        """Copy a folder's files into the destination."""
        shutil.copytree(folder, self._dest, dirs_exist_ok=True)

    def touch(self, name):
        """Make an empty file in the destination."""
        (self._dest / name).touch()

    def imported(self):
        """Say that all is done."""
        self._send(messages.Imported())

    def failure(self, message):
        """Say that it cannot be done."""
        self._send(messages.ImportFailure(message=message))

    def raw(self, text):
        """Send bytes that are no frame."""
        self._peer.sendall(text.encode())

    def kill(self, number):
        """Die by a signal."""
        os.kill(os.getpid(), number)

    def exit(self, code):
        """Die with an exit code."""
        sys.exit(code)

    def hang(self):
        """Stay for good, whatever the daemon does."""
        while True:
            signal.pause()

    def _send(self, frame):
        self._peer.sendall(framing.encode([frame]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args()
    signal.alarm(30)  # nobody outlives a test that failed to end it
    with socket.socket(fileno=options.fd) as peer:
        steps = Steps(peer, options.dest)
        for name, *arguments in json.loads(options.source.read_text(encoding="utf-8")):
            getattr(steps, name)(*arguments)


if __name__ == "__main__":
    main()
