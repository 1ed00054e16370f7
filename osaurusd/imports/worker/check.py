"""`python -m osaurusd.imports.worker.check --fd N --files SOCKET ITEMS`: finds out which models can be imported.

Reads only the headers of the open files that it receives. ITEMS is a list of `CheckItem` in JSON.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import msgspec

from osaurusd.errors import ImportFailed
from osaurusd.imports import messages
from osaurusd.imports.worker.shared_path import receive_files
from osaurusd.models import compatibility, metadata, safetensors, tokenizers
from osaurusd.rpc import child
from osaurusd.rpc.framing import Frame
from osaurusd.wire.imports import CheckedModel, CheckItem

# The received files have no folder in common.
_FOLDER = Path("/models")


def main(arguments: list[str]) -> int:
    """Check the models that the command line describes. Return 0 on success, 1 on failure."""
    parser = argparse.ArgumentParser(prog="python -m osaurusd.imports.worker.check")
    parser.add_argument("--fd", type=int, required=True, help="socket inherited from the daemon")
    parser.add_argument("--files", metavar="SOCKET", required=True, help="socket from which to receive the open files")
    parser.add_argument("items", type=lambda text: msgspec.json.decode(text, type=list[CheckItem]))
    options = parser.parse_args(arguments)
    last = child.report(options.fd, lambda _: _check_all(options.items, options.files))
    return 1 if isinstance(last, messages.ImportFailure) else 0


def _check_all(items: list[CheckItem], files: str) -> Frame:
    try:
        folder = receive_files(_FOLDER, files)
    except ImportFailed as error:
        return messages.ImportFailure(message=error.message)
    return messages.Checked(models=[check(item, folder / item.file) for item in items])


def check(item: CheckItem, path: Path) -> CheckedModel:
    """Return what the header of a model reveals, and why it cannot be imported, if so."""
    try:
        return _check_gguf(path) if item.format == "gguf" else _check_folder(path, item.names)
    except ImportFailed as error:
        return CheckedModel(reason=child.printable(error.message.removeprefix(f"{path.name}: ")))
    except OSError as error:
        return CheckedModel(reason=f"it cannot be read: {error.strerror or error}")


def _check_gguf(path: Path) -> CheckedModel:
    # Imported here so that this process notices that the daemon exited while NumPy and tokenizers load.
    import osaurusd.imports.worker.lean_imports  # noqa: F401, PLC0415
    from osaurusd.imports.worker import ollama  # noqa: PLC0415
    from osaurusd.imports.worker.gguf import read_header  # noqa: PLC0415
    from osaurusd.imports.worker.importer import check_header  # noqa: PLC0415

    header, _ = ollama.translate(read_header(path))
    sizes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.type] += tensor.nbytes
    model = CheckedModel(
        architecture=header.metadata.find_text("general.architecture"),
        quantization=sizes.most_common(1)[0][0] if sizes else None,
    )
    try:
        check_header(header)
    except ImportFailed as error:
        reason = child.printable(error.message.removeprefix(f"{path.name}: "))
        return msgspec.structs.replace(model, reason=reason)
    return model


def _check_folder(config_path: Path, names: list[str]) -> CheckedModel:
    try:
        config = json.loads(config_path.read_bytes())
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        return CheckedModel(reason="config.json is not a JSON object")
    weights = [name for name in names if name.endswith(".safetensors")]
    missing = safetensors.find_missing_file({}, weights)
    return CheckedModel(
        architecture=metadata.architecture(config),
        quantization=metadata.quantization(config),
        reason=compatibility.find_incompatibility(config, names, {})
        or tokenizers.find_missing(names, config, {})
        or (None if weights else "it has no safetensors files")
        or (f"{missing} is missing" if missing else None),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
