"""`python -m osaurusd.groups.worker --fd N TASK`: copies a model from another host and reports over a socket.

A separate process keeps TLS, hashing and the disk out of the daemon. The last frame is a Copied or a Failure.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import msgspec

from osaurusd.downloads.messages import Failure
from osaurusd.downloads.worker.errors import PullError
from osaurusd.groups.messages import Copied, CopyTask
from osaurusd.groups.worker.copying import copy
from osaurusd.rpc import child
from osaurusd.wire.errors import ErrorCode


def main(arguments: list[str]) -> int:
    """Copy the files; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.groups.worker")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket for the frames")
    parser.add_argument("task", type=Path, help="JSON file with the task")
    options = parser.parse_args(arguments)
    result = child.report(options.fd, lambda send: _run(options.task, send))
    return 1 if isinstance(result, Failure) else 0


def _run(task: Path, send: child.Send) -> Copied | Failure:
    try:
        return asyncio.run(copy(msgspec.json.decode(task.read_bytes(), type=CopyTask), send))
    except PullError as error:
        return Failure(code=error.code, message=child.printable(error.message))
    except Exception as error:  # noqa: BLE001  the daemon does not see the traceback, only this message
        message = f"unexpected error while copying a model: {type(error).__name__}: {error}"
        return Failure(code=ErrorCode.INTERNAL_ERROR, message=child.printable(message))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
