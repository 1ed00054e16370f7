"""`python -m osaurusd.models.worker --fd N COMMAND ...`: removes, verifies or hashes a model and reports over a socket.

A separate process keeps huggingface_hub, hashing and long deletions out of the daemon. Every command ends with one
result frame: a Removal, a Verification, Digests or a Failure.
"""

import argparse
import os
import sys
from pathlib import Path

from osaurusd.models import messages
from osaurusd.models.worker import removal, verification
from osaurusd.models.worker.files import StoreError
from osaurusd.rpc import child


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    options = _create_parser().parse_args(arguments)
    result = child.report(options.fd, lambda send: _run(options, send))
    return 1 if isinstance(result, messages.Failure) else 0


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m osaurusd.models.worker")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket for the frames")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("plan", "remove"):
        command = commands.add_parser(name)
        command.add_argument("--cache", type=Path, required=True, help="Hugging Face cache")
        command.add_argument("--repo", required=True, help="ORG/NAME of a model in the cache")
    command = commands.add_parser("remove-folder")
    command.add_argument("--path", type=Path, required=True, help="folder of an imported model")
    command = commands.add_parser("verify")
    command.add_argument("--snapshot", type=Path, required=True, help="folder of the model")
    command.add_argument("--record", type=Path, help="record of the import (default: osaurus.json in the folder)")
    command = commands.add_parser("hash")
    command.add_argument("--folder", type=Path, required=True, help="folder of the model")
    command.add_argument("names", nargs="+", help="files to hash, relative to the folder")
    return parser


def _run(options: argparse.Namespace, send: child.Send) -> messages.Message:
    """Carry out the command; returns the result frame."""
    try:
        match options.command:
            case "plan":
                return messages.Removal(freed_bytes=removal.plan_repo_removal(options.cache, options.repo))
            case "remove":
                return messages.Removal(freed_bytes=removal.remove_repo(options.cache, options.repo))
            case "remove-folder":
                return messages.Removal(freed_bytes=removal.remove_folder(options.path))
            case "hash":
                digests = verification.hash_files(options.folder, options.names, _throttled_progress(send))
                return messages.Digests(digests=digests)
            case _:
                files = verification.verify(options.snapshot, options.record, _throttled_progress(send))
                return messages.Verification(files=files)
    except StoreError as error:
        return messages.Failure(message=child.printable(str(error)))
    except OSError as error:
        return messages.Failure(message=child.printable(_describe(error)))


def _throttled_progress(send: child.Send) -> verification.Progress:
    throttle = child.Throttle()

    def progress(file: str, done: int, total: int) -> None:
        if throttle.allows("verify", done, total):
            send(messages.Hashing(file=file, done=done, total=total))

    return progress


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes | Path) else reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
