"""Copying an MLX model folder: the files that make up a model, and nothing that could run code."""

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
from osaurusd.models import safetensors, tokenizers
from osaurusd.platform.cloning import clone_file
from osaurusd.wire import model_files
from osaurusd.wire.files import sync_folder

PROVENANCE = "osaurus.json"
CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Describes weights that NVIDIA's ModelOpt has quantized.
_MODEL_OPT_CONFIG = "hf_quant_config.json"

_PATTERNS = ("*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.txt", "*.tiktoken", "*.model")
_DOCUMENTS = {"license", "licence", "notice", "readme"}
_DOCUMENT_SUFFIXES = ("", ".md", ".rst", ".txt")

# Errors of copy_file_range that mean: copy by reading and writing instead.
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}

_MAX_JSON_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class _File:
    """A file to copy; `name` is its path relative to the model's folder."""

    path: Path
    name: str
    size: int


def copy_folder(source: Path, dest: Path, progress: Callable[[int, int], None]) -> None:
    """Copy the model in `source` to the existing empty folder `dest`.

    Copies weights, config, tokenizer, templates, license and readme, and the modules of embedding models, following
    links to files. Skips code, pickles, other subfolders and everything else.

    Args:
        source: a model folder as mlx_lm saves it or as the Hugging Face cache holds it.
        dest: its files are synced to disk on return.
        progress: called with the bytes copied and the total bytes.

    Raises:
        ImportFailed: the folder is not a complete model, or the model needs its own code. The message names the file.
        OSError: a file could not be read or written.
    """
    files = _select(source)
    names = {file.name for file in files}
    _check_config(source, names)
    _check_weights(source, names)
    total = sum(file.size for file in files)
    done = 0

    def copied(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    progress(0, total)
    for file in files:
        _copy(file, dest / file.name, copied)
    _sync_subfolders(dest)


def copy_companions(source: Path, dest: Path) -> None:
    """Copy the tokenizer, templates, license and readme of a model, without its weights and config.

    Raises:
        ImportFailed: a file is not a regular file.
        OSError: a file could not be read or written.
    """
    for file in _select(source):
        if not fnmatch.fnmatchcase(file.name, "*.safetensors*") and file.name not in (CONFIG, _MODEL_OPT_CONFIG):
            _copy(file, dest / file.name, lambda _: None)
    _sync_subfolders(dest)


def _select(source: Path) -> list[_File]:
    files = []
    for path in sorted(source.iterdir()):
        if path.is_symlink() and path.is_dir():
            raise ImportFailed(f"{path.name}: links to folders are not followed")
        if _is_part_of_model(path.name):
            files.append(_regular_file(path, path.name))
    subfolder_files = model_files.find_subfolder_files(source)
    return files + [_regular_file(path, path.relative_to(source).as_posix()) for path in subfolder_files]


def _sync_subfolders(dest: Path) -> None:
    for subfolder in model_files.find_subfolders(dest):
        sync_folder(subfolder)


def _regular_file(path: Path, name: str) -> _File:
    # Follows links: the Hugging Face cache consists of them.
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImportFailed(f"{name}: it is not a regular file")
    return _File(path, name, status.st_size)


def _is_part_of_model(name: str) -> bool:
    if name == PROVENANCE:
        return False
    document = PurePath(name.lower())
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS) or (
        document.stem in _DOCUMENTS and document.suffix in _DOCUMENT_SUFFIXES
    )


def _check_config(source: Path, names: set[str]) -> None:
    if CONFIG not in names:
        raise ImportFailed(f"{source.name}: {CONFIG} is missing")
    config = _read_object(source / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ImportFailed(f"{CONFIG}: `model_type` is missing")
    if config.get("model_file") is not None:
        raise ImportFailed(
            f"{CONFIG}: the model needs its own code ({config['model_file']}), which osaurusd never runs"
        )
    tokenizer_config = _read_object(source / _TOKENIZER_CONFIG) if _TOKENIZER_CONFIG in names else {}
    if reason := tokenizers.find_missing(names, config, tokenizer_config):
        raise ImportFailed(f"{source.name}: {reason}")


def _check_weights(source: Path, names: set[str]) -> None:
    if reason := safetensors.read(source).missing:
        raise ImportFailed(reason)
    for name in sorted(fnmatch.filter(names, "*.safetensors")):
        try:
            safetensors.check_complete(source / name)
        except ValueError as error:
            raise ImportFailed(f"{name}: {error}") from error


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
    target.parent.mkdir(exist_ok=True)
    if _clone(file, target):
        copied(file.size)
        return
    with file.path.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        remaining = file.size
        while remaining:
            count = _move(reader.fileno(), writer.fileno(), min(remaining, _CHUNK_BYTES))
            if not count:
                raise ImportFailed(f"{file.path.name}: the file shrank while it was copied")
            remaining -= count
            copied(count)
        os.fsync(writer.fileno())


def _clone(file: _File, target: Path) -> bool:
    """Create `target` with the blocks of the file, which APFS, Btrfs and XFS share until one of the two changes.

    Returns False if the file system cannot do that; `target` does not exist then.
    """
    with file.path.open("rb", buffering=0) as reader:
        return clone_file(reader.fileno(), target) and target.stat().st_size == file.size


def _move(reader: int, writer: int, count: int) -> int:
    """Copy up to `count` bytes between two descriptors. Return the number of bytes, 0 at the end of the file."""
    if sys.platform == "linux":
        try:
            # The file system may share the blocks instead of copying. Some return 0 for files they do not support.
            if copied := os.copy_file_range(reader, writer, count):
                return copied
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    data = os.read(reader, count)
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(writer, rest) :]
    return len(data)
