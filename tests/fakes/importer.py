"""A scripted importer that replaces `python -m osaurusd.imports.worker`.

The source file is a JSON list of steps; each step is a list of the name of a method of `Steps` and its arguments.
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
    """The steps that a source can contain."""

    def __init__(self, connection, dest):
        self._connection = connection
        self._dest = dest

    def progress(self, stage, done, total):
        """Report progress; `{pid}` in the stage is replaced by the process id."""
        self._send(messages.Progress(stage=stage.format(pid=os.getpid()), done=done, total=total))

    def copy(self, folder):
        """Copy a folder's files into the destination."""
        shutil.copytree(folder, self._dest, dirs_exist_ok=True)

    def touch(self, name):
        """Create an empty file in the destination."""
        (self._dest / name).touch()

    def imported(self):
        """Report success."""
        self._send(messages.Imported())

    def failure(self, message):
        """Report a failure."""
        self._send(messages.ImportFailure(message=message))

    def raw(self, text):
        """Send bytes that are not a frame."""
        self._connection.sendall(text.encode())

    def kill(self, number):
        """Send a signal to this process."""
        os.kill(os.getpid(), number)

    def exit(self, code):
        sys.exit(code)

    def hang(self):
        """Keep running and ignore the daemon."""
        while True:
            signal.pause()

    def _send(self, frame):
        self._connection.sendall(framing.encode([frame]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args()
    signal.alarm(30)  # exit even if the test fails to end this process
    with socket.socket(fileno=options.fd) as connection:
        steps = Steps(connection, options.dest)
        for name, *arguments in json.loads(options.source.read_text(encoding="utf-8")):
            getattr(steps, name)(*arguments)


if __name__ == "__main__":
    main()
