"""Importing a model: copies an MLX model folder, or converts a GGUF file to one."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import ollama
from osaurusd.imports.worker import plan as planning
from osaurusd.imports.worker.folder import CONFIG, PROVENANCE, copy_folder
from osaurusd.imports.worker.gguf import GgufHeader, is_gguf, read_header
from osaurusd.imports.worker.hashing import ByteCounter, FileHash, hash_file
from osaurusd.imports.worker.plan import Plan
from osaurusd.imports.worker.tensor_file import find_shortage
from osaurusd.imports.worker.tokenizer import check_tokenizer, write_tokenizer
from osaurusd.imports.worker.vocabulary import Vocabulary, generation_config, read_vocabulary, token_ids
from osaurusd.imports.worker.weights import total_bytes, write_weights
from osaurusd.wire.files import describe, sync_folder, write_new_json
from osaurusd.wire.quantization import ImportQuantization, QuantizationReport

Progress = Callable[[str, int, int], None]
"""Called with the stage (`copy`, or `convert` and `hash`, then `record`), the bytes done and the total bytes."""


@dataclass(frozen=True)
class Options:
    """How to store the matrices of a GGUF file. The group size is for those that are requantized."""

    quantize: ImportQuantization = ImportQuantization.AUTO
    group_size: int = 32


DEFAULT_OPTIONS = Options()


def import_model(
    source: Path,
    dest: Path,
    progress: Progress,
    options: Options = DEFAULT_OPTIONS,
    adapt: Callable[[Path, dict[str, Any]], None] = lambda *_: None,
    source_hash: FileHash | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> QuantizationReport | None:
    """Create a model folder that mlx_lm can load, with its provenance in `osaurus.json`.

    Args:
        source: an MLX model folder, or a GGUF file. Of a split model, it is the first part.
        dest: an existing empty folder. The caller removes it after a failure.
        progress: called after each chunk of work.
        options: for GGUF files.
        adapt: called with the folder and its provenance before they are recorded; may change both.
        source_hash: of a GGUF file, started already.
        note: called with what the result lacks, or has in addition. The record has these texts too.

    Returns:
        What quantization changed; None for a folder.

    Raises:
        ImportFailed: the source cannot be imported, or a file could not be read or written. The message names the file.
    """
    # A relative path such as "." has no name.
    source = source.absolute()
    try:
        written = _write_model(source, dest, progress, options, source_hash)
        for text in written.provenance.get("notes", []):
            note(text)
        adapt(dest, written.provenance)
        # `verify` compares the files with these checksums.
        checksums = hash_all(dest, lambda done, total: progress("record", done, total), written.digests)
        write_new_json(dest / PROVENANCE, written.provenance | {"files": checksums})
        sync_folder(dest)
    except OSError as error:
        name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else source.name
        raise ImportFailed(f"{name}: {describe(error)}") from error
    return written.report


@dataclass(frozen=True)
class _Written:
    """A model folder without its provenance. `digests`: the SHA-256 of files that are known already."""

    provenance: dict[str, Any]
    digests: dict[str, str] = field(default_factory=dict)
    report: QuantizationReport | None = None


def _write_model(
    source: Path, dest: Path, progress: Progress, options: Options, source_hash: FileHash | None
) -> _Written:
    if source.is_dir():
        if options != DEFAULT_OPTIONS:
            raise ImportFailed(f"{source.name}: only GGUF files can be quantized during an import")
        copy_folder(source, dest, lambda done, total: progress("copy", done, total))
        return _Written(_provenance(source, "folder"))
    if source.is_file() and (source.suffix.lower() == ".gguf" or is_gguf(source)):
        return _convert(source, dest, progress, options, source_hash)
    raise ImportFailed(f"{source.name}: {_unsupported_reason(source)}")


def _unsupported_reason(source: Path) -> str:
    if not source.exists():
        return "the file or folder does not exist"
    return "it is neither a model folder nor a GGUF file"


def _convert(source: Path, dest: Path, progress: Progress, options: Options, source_hash: FileHash | None) -> _Written:
    """Convert a GGUF file."""
    header, notes = ollama.translate(read_header(source))
    if source_hash is None or source_hash.paths != header.paths:
        source_hash = FileHash(header.paths)
    with source_hash as digest, ThreadPoolExecutor(1) as thread:
        plan, vocabulary = check_header(header, options)
        _check_space(header, plan, dest)
        # While the weights are converted: building the tokenizer takes as long as converting 200 MB.
        texts = thread.submit(_write_texts, header, plan, vocabulary, dest)

        def report_progress(done: int, total: int) -> None:
            # Do not spend minutes on the weights of a file whose tokenizer is rejected.
            if texts.done():
                texts.result()
            progress("convert", done, total)

        digests, errors = write_weights(header, plan, dest, report_progress)
        texts.result()
        sha256 = digest.result(lambda done, total: progress("hash", done, total))
    provenance = _provenance(source, "gguf") | {"sha256": sha256}
    if license_name := header.metadata.find_text("general.license"):
        provenance["license"] = license_name
    if notes:
        provenance["notes"] = notes
    report = errors.report()
    lineage = {"mode": options.quantize, "group_size": options.group_size, **msgspec.to_builtins(report)}
    provenance["quantization"] = lineage | {"errors": errors.errors}
    return _Written(provenance, digests, report)


def _write_texts(header: GgufHeader, plan: Plan, vocabulary: Vocabulary, dest: Path) -> None:
    """Write everything except the weights."""
    write_tokenizer(vocabulary, header.metadata, dest)
    write_new_json(dest / "generation_config.json", generation_config(header.metadata, vocabulary))
    write_new_json(dest / CONFIG, plan.config | token_ids(vocabulary))


def check_header(header: GgufHeader, options: Options = DEFAULT_OPTIONS) -> tuple[Plan, Vocabulary]:
    """Plan the conversion of a GGUF file, and read its vocabulary.

    Raises:
        ImportFailed: the file cannot be converted.
    """
    plan = planning.plan_conversion(header, planning.Options(options.quantize.bits, options.group_size))
    vocabulary = read_vocabulary(header.metadata)
    check_tokenizer(vocabulary, header.metadata)
    rows = plan.config["vocab_size"]
    if len(vocabulary.tokens) > rows:
        raise header.metadata.failure(f"it has {len(vocabulary.tokens)} tokens, but embeddings for {rows}")
    return plan, vocabulary


def _check_space(header: GgufHeader, plan: Plan, dest: Path) -> None:
    if shortage := find_shortage(dest, total_bytes(plan)):
        raise header.metadata.failure(f"the disk is full: {shortage}")


def hash_all(
    folder: Path, progress: Callable[[int, int], None], known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Return the SHA-256 in hex of each file in a folder and its subfolders, by name; some are known already."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    count = ByteCounter(sum(path.stat().st_size for name, path in names.items() if name not in known), progress)
    return {name: known.get(name) or hash_file(path, count) for name, path in names.items()}


def _provenance(source: Path, kind: str) -> dict[str, Any]:
    return {"source": source.name, "format": kind, "imported_at": int(time.time())}
