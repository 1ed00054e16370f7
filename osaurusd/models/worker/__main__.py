"""`python -m osaurusd.models.worker --fd N COMMAND …`: works on the model store and says over a socket how it goes.

A process of its own, so that huggingface_hub, hashing and long deletions stay out of the daemon. The last frame of
`plan`, `delete` and `delete-folder` is a Deletion, that of `verify` a Hashed, and of whatever failed a StoreFailure.
"""

import argparse
import os
import sys
from pathlib import Path

from osaurusd.models.worker import cache, folder, verify
from osaurusd.models.worker.failure import StoreError, printable
from osaurusd.rpc import job, messages


def main(arguments: list[str]) -> int:
    """Does what the command line says; 0 if that could be done, 1 if not."""
    options = _parser().parse_args(arguments)
    last = job.report(options.fd, lambda send: _attempt(options, _progress(send)))
    return 1 if isinstance(last, messages.StoreFailure) else 0


def _progress(send: job.Send) -> verify.Progress:
    throttle = job.Throttle()

    def progress(file: str, done: int, total: int) -> None:
        if throttle.passes("verify", done, total):
            send(messages.Hashing(file=file, done=done, total=total))

    return progress


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m osaurusd.models.worker")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket that takes the frames")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("plan", "delete"):
        command = commands.add_parser(name)
        command.add_argument("--cache", type=Path, required=True, help="the Hugging Face cache")
        command.add_argument("--repo", required=True, help="ORG/NAME of a model in it")
    command = commands.add_parser("delete-folder")
    command.add_argument("--path", type=Path, required=True, help="the folder of an imported model")
    command = commands.add_parser("verify")
    command.add_argument("--snapshot", type=Path, required=True, help="the folder of a model")
    command.add_argument("--record", type=Path, help="what an import recorded, if not osaurus.json in the folder")
    return parser


def _attempt(options: argparse.Namespace, progress: verify.Progress) -> messages.Frame:
    """The frame that ends the command, once it is carried out."""
    try:
        match options.command:
            case "plan":
                return messages.Deletion(freed_bytes=cache.plan(options.cache, options.repo))
            case "delete":
                return messages.Deletion(freed_bytes=cache.delete(options.cache, options.repo))
            case "delete-folder":
                return messages.Deletion(freed_bytes=folder.delete(options.path))
            case _:
                return messages.Hashed(files=verify.verify(options.snapshot, options.record, progress))
    except StoreError as error:
        return messages.StoreFailure(message=printable(str(error)))
    except OSError as error:
        return messages.StoreFailure(message=printable(_explained(error)))


def _explained(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes | Path) else reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
