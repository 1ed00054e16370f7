"""The files of a model that all ranks must agree on, with their digests."""

import asyncio
import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from osaurusd.errors import LoadFailed
from osaurusd.groups.facts import layers_of
from osaurusd.log import get_logger
from osaurusd.models import maintenance, metadata, safetensors
from osaurusd.models.record import ModelRecord
from osaurusd.platform.state_file import StateFile
from osaurusd.wire import model_files
from osaurusd.wire.placement import Manifest, ManifestFile

log = get_logger(__name__)

CONFIG = "config.json"

_VERSION = 1
_WEIGHTS = "model*.safetensors"
# What mlx_lm and transformers load a model from. Code is never loaded, and documentation need not agree.
_PATTERNS = (_WEIGHTS, "*.json", "*.jsonl", "*.jinja", "*.tiktoken", "*.model", "merges.txt", "vocab.txt")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_Files = dict[str, tuple[int, int]]
"""The size and the time of change of each file, by name."""

Report = Callable[[int, int], None]
"""Called with the hashed bytes and those of all files to hash."""


class _Digest(msgspec.Struct, frozen=True):
    """The digest of a file with this size and time of change."""

    size: int
    modified_ns: int
    sha256: str


class _State(msgspec.Struct, kw_only=True):
    """The content of the state file: digests by path."""

    version: int = _VERSION
    digests: dict[str, _Digest] = {}


def is_part_of_model(path: str) -> bool:
    """Whether a path relative to a model's folder is that of a file that all ranks must agree on."""
    if path == metadata.IMPORT_RECORD:
        return False
    if model_files.is_in_subfolder(path):
        return True
    is_name = PurePosixPath(path).name == path and not path.startswith(".")
    return is_name and any(fnmatch.fnmatchcase(path, pattern) for pattern in _PATTERNS)


def select_files(manifest: Manifest, layers: range | None) -> list[ManifestFile]:
    """Return the files that a rank needs: all of them, or those with any of its layers or with shared weights."""
    return [
        file
        for file in manifest.files
        if layers is None or file.layers is None or any(layer in layers for layer in file.layers)
    ]


def check(manifest: Manifest) -> None:
    """Check a manifest from another host before anything is done with it.

    Raises:
        LoadFailed: it contains something that no model has.
    """
    paths = [file.path for file in manifest.files]
    valid = (
        CONFIG in paths
        and len(set(paths)) == len(paths)
        and all(map(is_part_of_model, paths))
        and all(_SHA256.fullmatch(file.sha256) and file.size >= 0 for file in manifest.files)
        and manifest.digest == digest_of(manifest.files)
    )
    if not valid:
        raise LoadFailed(f'the list of files of model "{manifest.model}" is invalid; install the same versions')


class Manifests:
    """Builds manifests. Digests that the download or import recorded are used, and others computed once.

    Args:
        file: the state file with the computed digests.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._digests: dict[str, _Digest] | None = None
        self._built: dict[Path, tuple[_Files, tuple[ManifestFile, ...]]] = {}
        self._lock = asyncio.Lock()

    async def build(self, record: ModelRecord, report: Report = lambda _done, _total: None) -> Manifest:
        """Build the manifest of a model on this host.

        Raises:
            OsaurusError: a file cannot be read.
        """
        names = sorted(name for name, _ in record.files if is_part_of_model(name))
        if CONFIG not in names or record.escapes:
            raise LoadFailed(f'model "{record.name}" cannot be distributed: {record.reason or "it has no config.json"}')
        try:
            files = await asyncio.to_thread(_stat_files, record.path, names)
            entries = self._known(record.path, files) or await self._build(record.path, files, report)
        except OSError as error:
            raise LoadFailed(f'model "{record.name}": {error.filename}: {error.strerror}') from error
        return Manifest(model=record.name, digest=digest_of(entries), files=entries)

    def _known(self, folder: Path, files: _Files) -> tuple[ManifestFile, ...] | None:
        """Return the entries of files that have not changed since they were built."""
        built = self._built.get(folder)
        return built[1] if built is not None and built[0] == files else None

    async def _build(self, folder: Path, files: _Files, report: Report) -> tuple[ManifestFile, ...]:
        """Build the entries. One model at a time: a disk is not faster with two readers."""
        async with self._lock:
            if (entries := self._known(folder, files)) is None:
                digests = await self._find_digests(folder, files, report)
                layers = await asyncio.to_thread(_read_layers, folder)
                entries = _create_entries(files, digests, layers)
                self._built[folder] = files, entries
            return entries

    async def _find_digests(self, folder: Path, files: _Files, report: Report) -> dict[str, str]:
        if self._digests is None:
            self._digests = dict((await asyncio.to_thread(self._file.read)).digests)
        digests = await asyncio.to_thread(_find_known, folder, files, self._digests)
        missing = [name for name in files if name not in digests]
        if missing:
            nbytes = sum(files[name][0] for name in missing)
            log.info("computing the digests of a model", folder=str(folder), files=len(missing), bytes=nbytes)
            computed = await maintenance.hash_files(folder, missing, report)
            self._digests |= {str(folder / name): _Digest(*files[name], computed[name]) for name in missing}
            await asyncio.to_thread(self._save, self._digests)
            digests |= computed
        return digests

    def _save(self, digests: Mapping[str, _Digest]) -> None:
        """Write the digests of files that still exist. Without the file, they are computed again."""
        try:
            self._file.write(_State(digests={path: each for path, each in digests.items() if Path(path).exists()}))
        except OSError as error:
            log.warning("cannot write the digests of models", reason=str(error))


def _stat_files(folder: Path, names: Sequence[str]) -> _Files:
    """Return the size and the time of change of each file.

    Raises:
        OSError: a file does not exist.
    """
    statuses = {name: (folder / name).stat() for name in names}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in statuses.items()}


def _find_known(folder: Path, files: _Files, computed: Mapping[str, _Digest]) -> dict[str, str]:
    """Return the digests that need not be computed, by name."""
    recorded = metadata.read_recorded_digests(folder)
    found = {}
    for name, status in files.items():
        cached = computed.get(str(folder / name))
        # Small files of an import may have been edited since, and are hashed quickly.
        trusted = recorded.get(name) if fnmatch.fnmatchcase(name, _WEIGHTS) else None
        if cached and (cached.size, cached.modified_ns) == status:
            found[name] = cached.sha256
        elif digest := _blob_digest(folder / name) or trusted:
            found[name] = digest
    return found


def _blob_digest(path: Path) -> str | None:
    """Return the digest in the name of a blob of the Hugging Face cache; only that of LFS files is a SHA-256."""
    if not path.is_symlink():
        return None
    target = Path(os.path.normpath(path.parent / path.readlink()))
    return target.name if target.parent.name == "blobs" and _SHA256.fullmatch(target.name) else None


def _create_entries(
    files: _Files, digests: Mapping[str, str], layers: Mapping[str, tuple[int, ...] | None]
) -> tuple[ManifestFile, ...]:
    return tuple(
        ManifestFile(path=name, size=size, sha256=digests[name], layers=layers.get(name))
        for name, (size, _) in files.items()
    )


def _read_layers(folder: Path) -> dict[str, tuple[int, ...] | None]:
    return {name: layers_of(tensors) for name, tensors in safetensors.read(folder).files.items()}


def digest_of(files: Sequence[ManifestFile]) -> str:
    """Return a digest of the names and digests of all files."""
    return hashlib.sha256(msgspec.json.encode([(file.path, file.sha256) for file in files])).hexdigest()
