"""`python -m osaurusd.imports.worker --fd N SOURCE DEST`: imports one model and reports progress over a socket."""

import argparse
import sys
from pathlib import Path

from osaurusd.errors import ImportFailed
from osaurusd.imports import messages
from osaurusd.rpc import job
from osaurusd.rpc.messages import Frame


def main(arguments: list[str]) -> int:
    """Import the model that the command line names. Return 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.imports.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    last = job.report(options.fd, lambda send: _import(send, options.source, options.dest))
    return 1 if isinstance(last, messages.ImportFailure) else 0


def _import(send: job.Send, source: Path, dest: Path) -> Frame:
    # Imported here so that this process notices that the daemon exited while NumPy and tokenizers load.
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415

    throttle = job.Throttle()

    def progress(stage: str, done: int, total: int) -> None:
        if throttle.allows(stage, done, total):
            send(messages.Progress(stage=stage, done=done, total=total))

    try:
        import_model(source, dest, progress)
    except ImportFailed as error:
        return messages.ImportFailure(message=error.message)
    return messages.Imported()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
