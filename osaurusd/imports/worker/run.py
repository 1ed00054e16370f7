"""Brings a model into a folder of its own: an MLX model folder as it is, a GGUF file translated."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import llama
from osaurusd.imports.worker.files import write_json
from osaurusd.imports.worker.folder import CONFIG, PROVENANCE, copy_folder
from osaurusd.imports.worker.generation import generation_config, token_ids
from osaurusd.imports.worker.gguf_file import GgufHeader, read_header
from osaurusd.imports.worker.tokenizer import write_tokenizer
from osaurusd.imports.worker.vocabulary import Vocabulary, read_vocabulary
from osaurusd.imports.worker.weights import read_floats, write_weights

Progress = Callable[[str, int, int], None]
"""Told the stage (`copy`, or `hash` and `convert`, then `record`), the bytes done and the bytes to do."""

_HASH_CHUNK_BYTES = 4 * 1024 * 1024


def import_model(source: Path, dest: Path, progress: Progress) -> None:
    """Makes a model folder that mlx_lm can load, with its provenance in `osaurus.json`.

    Args:
        source: an MLX model folder or a `.gguf` file.
        dest: an existing empty folder; after a failure the caller removes it.
        progress: told of each piece of work.

    Raises:
        ImportFailed: the source is no model that can be imported, or a file could not be read or written; the message
            names the file and the reason.
    """
    # A relative path may have no name of its own.
    source = source.absolute()
    try:
        if source.is_dir():
            copy_folder(source, dest, lambda done, total: progress("copy", done, total))
            provenance = _provenance(source, "folder")
        elif source.suffix.lower() == ".gguf" and source.is_file():
            provenance = _provenance(source, "gguf") | _convert(source, dest, progress)
        else:
            raise ImportFailed(f"{source.name}: {_unfit(source)}")
        # What a later verification compares with.
        recorded = _hash_all(dest, lambda done, total: progress("record", done, total))
        write_json(dest / PROVENANCE, provenance | {"files": recorded})
        _sync_folder(dest)
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else source.name
        raise ImportFailed(f"{name}: {error.strerror or error}") from error


def _unfit(source: Path) -> str:
    if not source.exists():
        return "there is no such file or folder"
    return "it is neither a model folder nor a .gguf file"


def _convert(source: Path, dest: Path, progress: Progress) -> dict[str, str]:
    """Writes the folder for a GGUF file and gives the file's SHA-256 in hex, and its licence if it names one."""
    header = read_header(source)
    plan = llama.plan(header, read_floats(header, llama.ROPE_FREQUENCIES))
    vocabulary = read_vocabulary(header.metadata)
    _check_sizes(header, plan, vocabulary)
    # All that can be refused is looked at before the minutes of work on the weights.
    write_tokenizer(vocabulary, header.metadata, dest)
    write_json(dest / "generation_config.json", generation_config(header.metadata, vocabulary))
    write_json(dest / CONFIG, plan.config | token_ids(vocabulary))
    digest = _hash(source, _Count(source.stat().st_size, lambda done, total: progress("hash", done, total)))
    write_weights(header, plan, dest, lambda done, total: progress("convert", done, total))
    licence = header.metadata.find_text("general.license")
    return {"sha256": digest} | ({"license": licence} if licence else {})


def _check_sizes(header: GgufHeader, plan: llama.Plan, vocabulary: Vocabulary) -> None:
    rows = plan.config["vocab_size"]
    if len(vocabulary.tokens) > rows:
        raise header.metadata.failure(f"it has {len(vocabulary.tokens)} tokens and embeddings for {rows}")


def _hash(path: Path, progress: Callable[[int], None]) -> str:
    """SHA-256 in hex; `progress` is told the size of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASH_CHUNK_BYTES):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()


def _hash_all(folder: Path, progress: Callable[[int, int], None]) -> dict[str, str]:
    """SHA-256 in hex of each file in a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    count = _Count(sum(path.stat().st_size for path in files), progress)
    return {path.name: _hash(path, count) for path in files}


class _Count:
    """Adds pieces up for a progress report that wants the bytes done and to do."""

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


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
