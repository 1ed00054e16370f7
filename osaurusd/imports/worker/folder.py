"""Copies an MLX model folder: what a model is made of, and nothing that could run code."""

import errno
import fnmatch
import json
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import safetensors_file

PROVENANCE = "osaurus.json"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"

_PATTERNS = ("*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")
_PAPERS = {"license", "licence", "notice", "readme"}
_PAPER_SUFFIXES = ("", ".md", ".rst", ".txt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
# mlx_lm loads only files of this name.
_WEIGHTS = "model*.safetensors"

# What copy_file_range answers where only reading and writing will do.
_NOT_IN_KERNEL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}

_MAX_JSON_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class _File:
    path: Path
    size: int


def copy_folder(source: Path, dest: Path, progress: Callable[[int, int], None]) -> None:
    """Copies the model in the folder `source` into the existing empty folder `dest`.

    Weights, config, tokenizer, templates, licence and readme are copied, links to files as the files; code, pickles,
    subfolders and all else is left behind.

    Args:
        source: a model folder, as mlx_lm saves them and as the Hugging Face cache holds them.
        dest: its files are on the disk on return.
        progress: told the bytes copied and the bytes to copy.

    Raises:
        ImportFailed: the folder is no complete model, or needs code of its own; the message names the file.
        OSError: a file could not be read or written.
    """
    files = _select(source)
    names = {file.path.name for file in files}
    _check_config(source, names)
    _check_tokenizer(source, names)
    _check_weights(source, names)
    total = sum(file.size for file in files)
    done = 0

    def copied(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    progress(0, total)
    for file in files:
        _copy(file, dest / file.path.name, copied)


def _select(source: Path) -> list[_File]:
    files = []
    for path in sorted(source.iterdir()):
        if path.is_symlink() and path.is_dir():
            raise ImportFailed(f"{path.name}: it is a link to a folder; links to folders are not followed")
        if not _wanted(path.name):
            continue
        # Through links: the Hugging Face cache is made of them.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImportFailed(f"{path.name}: it is not a regular file")
        files.append(_File(path, status.st_size))
    return files


def _wanted(name: str) -> bool:
    if name == PROVENANCE:
        return False
    paper = PurePath(name.lower())
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS) or (
        paper.stem in _PAPERS and paper.suffix in _PAPER_SUFFIXES
    )


def _check_config(source: Path, names: set[str]) -> None:
    if CONFIG not in names:
        raise ImportFailed(f"{source.name}: it has no {CONFIG}")
    config = _read_object(source / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ImportFailed(f"{CONFIG}: it says no model_type")
    if config.get("model_file") is not None:
        raise ImportFailed(f"{CONFIG}: the model needs code of its own ({config['model_file']}), which is never run")


def _check_tokenizer(source: Path, names: set[str]) -> None:
    if any(fnmatch.filter(names, pattern) for pattern in _TOKENIZERS) or {"vocab.json", "merges.txt"} <= names:
        return
    raise ImportFailed(f"{source.name}: it has no tokenizer, such as a tokenizer.json or a tokenizer.model")


def _check_weights(source: Path, names: set[str]) -> None:
    if not fnmatch.filter(names, _WEIGHTS):
        raise ImportFailed(f"{source.name}: it has no weights ({_WEIGHTS})")
    if INDEX in names:
        weight_map = _read_object(source / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ImportFailed(f"{INDEX}: it has no weight_map")
        if missing := sorted({str(shard) for shard in weight_map.values()} - names):
            raise ImportFailed(f"{missing[0]}: {INDEX} names it, and it is missing")
    for name in sorted(fnmatch.filter(names, "*.safetensors")):
        safetensors_file.check_whole(source / name)


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ImportFailed(f"{path.name}: it is larger than {_MAX_JSON_BYTES} bytes")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ImportFailed(f"{path.name}: it is not valid JSON") from None
    if not isinstance(document, dict):
        raise ImportFailed(f"{path.name}: it is not a JSON object")
    return document


def _copy(file: _File, target: Path, copied: Callable[[int], None]) -> None:
    with file.path.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        left = file.size
        while left:
            count = _move(reader.fileno(), writer.fileno(), min(left, _CHUNK_BYTES))
            if not count:
                raise ImportFailed(f"{file.path.name}: it became shorter while it was copied")
            left -= count
            copied(count)
        os.fsync(writer.fileno())


def _move(reader: int, writer: int, count: int) -> int:
    """Copies up to `count` bytes from one descriptor's position to the other's; 0 at the end of the file."""
    if sys.platform == "linux":
        try:
            # Lets the file system share the blocks instead of copying them. Some give 0 for files that they cannot.
            if copied := os.copy_file_range(reader, writer, count):
                return copied
        except OSError as error:
            if error.errno not in _NOT_IN_KERNEL:
                raise
    data = os.read(reader, count)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(writer, rest) :]
    return len(data)
