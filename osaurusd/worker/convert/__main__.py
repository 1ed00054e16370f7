"""`python -m osaurusd.worker.convert --fd N SOURCE DEST`: imports one model and says over a socket how it goes."""

import argparse
import sys
from pathlib import Path

from osaurusd import ipc, job
from osaurusd.errors import ImportFailed


def main(arguments: list[str]) -> int:
    """Imports the model that the command line names; 0 if that succeeded, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.worker.convert")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket that takes the frames")
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    last = job.report(options.fd, lambda send: _import(send, options.source, options.dest))
    return 1 if isinstance(last, ipc.ImportFailure) else 0


def _import(send: job.Send, source: Path, dest: Path) -> ipc.Frame:
    # Imported late so that the death of the daemon is noticed while NumPy and tokenizers load.
    from osaurusd.worker.convert.run import import_model  # noqa: PLC0415

    throttle = job.Throttle()

    def progress(stage: str, done: int, total: int) -> None:
        if throttle.passes(stage, done, total):
            send(ipc.Progress(stage=stage, done=done, total=total))

    try:
        import_model(source, dest, progress)
    except ImportFailed as error:
        return ipc.ImportFailure(message=error.message)
    return ipc.Imported()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
