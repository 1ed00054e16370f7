"""`python -m osaurusd.imports.worker.quantize --fd N TASK SOURCE DEST`: quantizes one model.

It reports progress over the inherited socket. TASK is a `QuantizationTask` in JSON.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from osaurusd.errors import ImportFailed, QuantizationFailed
from osaurusd.imports import messages
from osaurusd.imports.messages import QuantizationTask
from osaurusd.rpc import child
from osaurusd.rpc.framing import Frame
from osaurusd.wire.files import describe, sync_folder, write_new_json


def main(arguments: list[str]) -> int:
    """Quantize the model that the command line names. Return 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.imports.worker.quantize")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    parser.add_argument("task", type=lambda text: msgspec.json.decode(text, type=QuantizationTask))
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    options = parser.parse_args(arguments)
    last = child.report(options.fd, lambda send: _run(send, options.task, options.source, options.dest))
    return 1 if isinstance(last, messages.ImportFailure) else 0


def _run(send: child.Send, task: QuantizationTask, source: Path, dest: Path) -> Frame:
    throttle = child.Throttle()

    def progress(stage: str, done: int, total: int) -> None:
        if throttle.allows(stage, done, total):
            send(messages.Progress(stage=stage, done=done, total=total))

    try:
        progress("load", 0, 0)
        _create_model(task, source, dest, progress, lambda text: send(messages.Note(text=text)))
    except (ImportFailed, QuantizationFailed) as error:
        return messages.ImportFailure(message=error.message)
    except OSError as error:
        return messages.ImportFailure(message=child.printable(describe(error)))
    return messages.Imported()


def _create_model(
    task: QuantizationTask,
    source: Path,
    dest: Path,
    progress: Callable[[str, int, int], None],
    note: Callable[[str], None],
) -> None:
    # Imported here so that this process notices that the daemon exited while MLX and mlx_lm load.
    # Without the first, mlx_lm imports all of transformers: a second of CPU time.
    importlib.import_module("osaurusd.worker.lean_imports")
    from osaurusd.imports.worker import quantizer  # noqa: PLC0415
    from osaurusd.imports.worker.folder import PROVENANCE, copy_companions  # noqa: PLC0415
    from osaurusd.imports.worker.importer import hash_all  # noqa: PLC0415

    report = quantizer.quantize(
        source, dest, task.settings, lambda done, total: progress("quantize", done, total), note
    )
    copy_companions(source, dest)
    checksums = hash_all(dest, lambda done, total: progress("record", done, total))
    record = {
        "source": task.base.name,
        "format": "quantized",
        "imported_at": int(time.time()),
        "base": msgspec.to_builtins(task.base),
        "quantization": report.as_record(),
        "files": checksums,
    }
    license_name = {"license": task.base.license} if task.base.license else {}
    write_new_json(dest / PROVENANCE, record | license_name)
    sync_folder(dest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
