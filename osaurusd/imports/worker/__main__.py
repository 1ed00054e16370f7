"""`python -m osaurusd.imports.worker --fd N [--files SOCKET] SOURCE DEST`: imports one model.

It reports progress over the inherited socket. With `--files`, it does not open the source, but receives open files.
"""

import argparse
import sys
from pathlib import Path

from osaurusd.errors import ImportFailed
from osaurusd.imports import messages
from osaurusd.imports.worker.shared_path import share
from osaurusd.rpc import job
from osaurusd.rpc.messages import Frame
from osaurusd.wire import open_files


def main(arguments: list[str]) -> int:
    """Import the model that the command line names. Return 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.imports.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    parser.add_argument("--files", metavar="SOCKET", help="socket from which to receive the open files of SOURCE")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    last = job.report(options.fd, lambda send: _import(send, options.source, options.dest, options.files))
    return 1 if isinstance(last, messages.ImportFailure) else 0


def _import(send: job.Send, source: Path, dest: Path, files: str | None) -> Frame:
    # Imported here so that this process notices that the daemon exited while NumPy and tokenizers load.
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415

    throttle = job.Throttle()

    def progress(stage: str, done: int, total: int) -> None:
        if throttle.allows(stage, done, total):
            send(messages.Progress(stage=stage, done=done, total=total))

    try:
        # Before the source is touched at all: access may be denied, or block on a question to the user.
        source = _receive_files(source, files) if files is not None else source
        import_model(source, dest, progress)
    except ImportFailed as error:
        return messages.ImportFailure(message=error.message)
    return messages.Imported()


def _receive_files(source: Path, path: str) -> Path:
    try:
        return share(source, *open_files.receive(path))
    except (OSError, open_files.InvalidOffer) as error:
        raise ImportFailed(f"{source.name}: osaurusctl did not pass the open files: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
