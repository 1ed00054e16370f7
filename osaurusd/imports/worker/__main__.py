"""`python -m osaurusd.imports.worker --fd N [--files SOCKET] [--origin JSON] SOURCE DEST`: imports one model.

It reports progress over the inherited socket. With `--files`, it does not open the source, but receives open files.
"""

import argparse
import gc
import sys
from pathlib import Path
from typing import Any

import msgspec

from osaurusd.errors import ImportFailed
from osaurusd.imports import messages
from osaurusd.imports.worker.hashing import FileHash, model_files
from osaurusd.imports.worker.shared_path import receive_files
from osaurusd.rpc import child
from osaurusd.rpc.framing import Frame
from osaurusd.wire.lineage import Origin
from osaurusd.wire.quantization import ImportQuantization

_COLLECTION_INTERVAL = 200_000


def main(arguments: list[str]) -> int:
    """Import the model that the command line names. Return 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.imports.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    parser.add_argument("--files", metavar="SOCKET", help="socket from which to receive the open files of SOURCE")
    parser.add_argument("--origin", type=_parse_origin, help="what another program knows about SOURCE, in JSON")
    parser.add_argument("--quantize", type=ImportQuantization, default=ImportQuantization.AUTO)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    # Vocabularies are lists of many strings, in which the garbage collector would search for cycles again and again.
    gc.set_threshold(_COLLECTION_INTERVAL)
    last = child.report(options.fd, lambda send: _import(send, options))
    return 1 if isinstance(last, messages.ImportFailure) else 0


def _parse_origin(text: str) -> Origin:
    return msgspec.json.decode(text, type=Origin)


def _import(send: child.Send, options: argparse.Namespace) -> Frame:
    try:
        # Before the source is touched at all: access may be denied, or block on a question to the user.
        source = options.source if options.files is None else receive_files(options.source, options.files)
        with FileHash(model_files(source)) as source_hash:
            return _import_model(source, source_hash, send, options)
    except ImportFailed as error:
        message = error.message
        if options.origin is not None and message.startswith(file := f"{options.source.name}: "):
            # Ollama's files are named by their checksums.
            message = f"{options.origin.name}: {message.removeprefix(file)}"
        return messages.ImportFailure(message=message)


def _import_model(source: Path, source_hash: FileHash, send: child.Send, options: argparse.Namespace) -> Frame:
    # Imported here so that this process notices that the daemon exited, and hashes the source, while NumPy, MLX and
    # tokenizers load.
    import osaurusd.imports.worker.lean_imports  # noqa: F401, PLC0415
    from osaurusd.imports.worker import origins  # noqa: PLC0415
    from osaurusd.imports.worker.importer import Options, import_model  # noqa: PLC0415

    throttle = child.Throttle()

    def progress(stage: str, done: int, total: int) -> None:
        if throttle.allows(stage, done, total):
            send(messages.Progress(stage=stage, done=done, total=total))

    def note(text: str) -> None:
        send(messages.Note(text=text))

    def adapt(folder: Path, provenance: dict[str, Any]) -> None:
        if options.origin is not None:
            for text in origins.adapt(folder, provenance, options.origin):
                note(text)

    settings = Options(options.quantize, options.group_size)
    report = import_model(source, options.dest, progress, settings, adapt, source_hash, note)
    return messages.Imported(quantization=report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
