"""Importing a model: copies an MLX model folder, or converts a GGUF file to one."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import llama
from osaurusd.imports.worker.folder import CONFIG, PROVENANCE, copy_folder
from osaurusd.imports.worker.gguf import GgufHeader, is_gguf, read_header
from osaurusd.imports.worker.tokenizer import check_tokenizer, write_tokenizer
from osaurusd.imports.worker.vocabulary import Vocabulary, generation_config, read_vocabulary, token_ids
from osaurusd.imports.worker.weights import read_floats, write_weights
from osaurusd.platform.files import sync_folder, write_new_json

Progress = Callable[[str, int, int], None]
"""Called with the stage (`copy`, or `hash` and `convert`, then `record`), the bytes done and the total bytes."""

_HASH_CHUNK_BYTES = 4 * 1024 * 1024


def import_model(
    source: Path, dest: Path, progress: Progress, adapt: Callable[[Path, dict[str, Any]], None] = lambda *_: None
) -> None:
    """Create a model folder that mlx_lm can load, with its provenance in `osaurus.json`.

    Args:
        source: an MLX model folder or a `.gguf` file.
        dest: an existing empty folder. The caller removes it after a failure.
        progress: called after each chunk of work.
        adapt: called with the folder and its provenance before they are recorded; may change both.

    Raises:
        ImportFailed: the source cannot be imported, or a file could not be read or written. The message names the file.
    """
    # A relative path such as "." has no name.
    source = source.absolute()
    try:
        if source.is_dir():
            copy_folder(source, dest, lambda done, total: progress("copy", done, total))
            provenance = _provenance(source, "folder")
        elif source.is_file() and (source.suffix.lower() == ".gguf" or is_gguf(source)):
            provenance = _provenance(source, "gguf") | _convert(source, dest, progress)
        else:
            raise ImportFailed(f"{source.name}: {_unsupported_reason(source)}")
        adapt(dest, provenance)
        # `verify` compares the files with these checksums.
        checksums = hash_all(dest, lambda done, total: progress("record", done, total))
        write_new_json(dest / PROVENANCE, provenance | {"files": checksums})
        sync_folder(dest)
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else source.name
        raise ImportFailed(f"{name}: {error.strerror or error}") from error


def _unsupported_reason(source: Path) -> str:
    if not source.exists():
        return "the file or folder does not exist"
    return "it is neither a model folder nor a GGUF file"


def _convert(source: Path, dest: Path, progress: Progress) -> dict[str, str]:
    """Convert a GGUF file. Return its SHA-256 in hex, and its license if it names one."""
    header = read_header(source)
    plan, vocabulary = check_header(header)
    # Check everything that can be rejected before spending minutes on the weights.
    write_tokenizer(vocabulary, header.metadata, dest)
    write_new_json(dest / "generation_config.json", generation_config(header.metadata, vocabulary))
    write_new_json(dest / CONFIG, plan.config | token_ids(vocabulary))
    digest = _hash(source, _ByteCounter(source.stat().st_size, lambda done, total: progress("hash", done, total)))
    write_weights(header, plan, dest, lambda done, total: progress("convert", done, total))
    license_name = header.metadata.find_text("general.license")
    return {"sha256": digest} | ({"license": license_name} if license_name else {})


def check_header(header: GgufHeader) -> tuple[llama.Plan, Vocabulary]:
    """Plan the conversion of a GGUF file, and read its vocabulary.

    Raises:
        ImportFailed: the file cannot be converted.
    """
    plan = llama.plan_conversion(header, read_floats(header, llama.ROPE_FREQUENCIES))
    vocabulary = read_vocabulary(header.metadata)
    check_tokenizer(vocabulary, header.metadata)
    _check_sizes(header, plan, vocabulary)
    return plan, vocabulary


def _check_sizes(header: GgufHeader, plan: llama.Plan, vocabulary: Vocabulary) -> None:
    rows = plan.config["vocab_size"]
    if len(vocabulary.tokens) > rows:
        raise header.metadata.failure(f"it has {len(vocabulary.tokens)} tokens, but embeddings for {rows}")


def _hash(path: Path, progress: Callable[[int], None]) -> str:
    """Return the SHA-256 in hex. Calls `progress` with the size of each chunk."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def hash_all(folder: Path, progress: Callable[[int, int], None]) -> dict[str, str]:
    """Return the SHA-256 in hex of each file in a folder and its subfolders, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    count = _ByteCounter(sum(path.stat().st_size for path in files), progress)
    return {path.relative_to(folder).as_posix(): _hash(path, count) for path in files}


class _ByteCounter:
    """Turns chunk sizes into progress reports of bytes done and total bytes."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        self._done = 0
        self._total = total
        self._progress = progress
        progress(0, total)

    def __call__(self, size: int) -> None:
        self._done += size
        self._progress(self._done, self._total)


def _provenance(source: Path, kind: str) -> dict[str, Any]:
    return {"source": source.name, "format": kind, "imported_at": int(time.time())}
