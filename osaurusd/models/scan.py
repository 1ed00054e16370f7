"""Scanning the roots: what each model is, and whether it can be served."""

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from osaurusd.log import get_logger
from osaurusd.models import compatibility, copies, embedding, memory, metadata, safetensors, tokenizers, vision
from osaurusd.models.record import Capabilities, GenerationDefaults, MemoryEstimate, ModelRecord
from osaurusd.models.roots import ModelFolder, Root, find_model_folders, is_utf8
from osaurusd.wire import model_files
from osaurusd.wire.admin import Availability

log = get_logger(__name__)

SCAN_TIMEOUT_SECONDS = 2.0
"""How long callers wait for one root. A first scan of thousands of models takes less."""

SCAN_WAITS = 4
"""It passes in so many parts. While the daemon itself is stopped, such as on a machine that swaps, only one passes."""

_TOKENIZER_CONFIG = "tokenizer_config.json"
_OTHER_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json")


class _File(msgspec.Struct, frozen=True):
    """A file of a model, with the attributes that change when another program replaces it."""

    name: str
    size: int
    modified: int
    inode: int


class Scanner:
    """Reads the models of one root, and rereads only models whose files have changed. Blocking.

    Args:
        root: the folder to scan.
        boundaries: other roots that links may lead into.
    """

    def __init__(self, root: Root, boundaries: Sequence[Path] = ()) -> None:
        self.root = root
        self._boundaries = boundaries
        self._known: dict[ModelFolder, tuple[tuple[_File, ...], ModelRecord]] = {}

    def scan(self) -> list[ModelRecord]:
        """Return every model of the root, complete or not, before names are assigned.

        Raises:
            OSError: the root cannot be read.
        """
        self._known = {folder: self._read(folder) for folder in find_model_folders(self.root)}
        return [record for _, record in self._known.values()]

    def _read(self, folder: ModelFolder) -> tuple[tuple[_File, ...], ModelRecord]:
        files = _list_files(folder.path)
        known = self._known.get(folder)
        if known is not None and known[0] == files:
            return known
        return files, _read_record(folder, files, (folder.boundary, *self._boundaries))


class BackgroundScanner:
    """Scans a root in its own thread, so that a network volume or a privacy prompt that hangs blocks no request."""

    def __init__(self, scanner: Scanner) -> None:
        self.root = scanner.root
        self._scanner = scanner
        self._running: Future[list[ModelRecord]] | None = None
        self.records: list[ModelRecord] = []
        self.fault: str | None = None

    async def scan(self) -> None:
        """Update `records`. If the root fails or times out, `records` stays as it is and `fault` states why.

        A scan that has timed out keeps running; later calls return immediately until it has finished.
        """
        if self._running is not None and not self._running.done():
            return
        if self._running is None:
            self._running = _run_in_thread(self._scanner)
            await _wait_shortly(self._running)
        if not self._running.done():
            self._report("does not respond")
            return
        ended, self._running = self._running, None
        try:
            self.records = ended.result()
        except OSError as error:
            self._report(f"cannot be read: {error.strerror or error}")
        else:
            self.fault = None

    async def wait_for_late_scan(self) -> bool:
        """Wait until a scan that has timed out ends; return whether there was one."""
        if self._running is None:
            return False
        await _wait(self._running, None)
        return True

    def _report(self, problem: str) -> None:
        fault = f"the models folder {self.root.path} {problem}"
        if fault != self.fault:
            log.warning("models folder unavailable", fault=fault)
        self.fault = fault


async def _wait_shortly(running: Future[list[ModelRecord]]) -> None:
    """Wait until a scan ends, but not much longer than `SCAN_TIMEOUT_SECONDS`."""
    for _ in range(SCAN_WAITS):
        if not running.done():
            await _wait(running, SCAN_TIMEOUT_SECONDS / SCAN_WAITS)


async def _wait(running: Future[list[ModelRecord]], seconds: float | None) -> None:
    """Wait until a scan ends, however it ends, but not longer than this. It continues if the caller is cancelled."""
    ended = asyncio.shield(asyncio.wrap_future(running))
    try:
        await asyncio.wait([ended], timeout=seconds)
    finally:
        if not ended.cancel():
            ended.exception()  # asyncio would log it as unhandled; the caller gets it from `running`


def _run_in_thread(scanner: Scanner) -> Future[list[ModelRecord]]:
    """Run a scan in a daemon thread. Unlike an executor's thread, it does not delay the exit of the process."""
    future: Future[list[ModelRecord]] = Future()

    def run() -> None:
        try:
            future.set_result(scanner.scan())
        except Exception as error:  # noqa: BLE001  raised again by the future
            future.set_exception(error)

    threading.Thread(target=run, name=f"scan {scanner.root.path}", daemon=True).start()
    return future


def _read_record(folder: ModelFolder, files: tuple[_File, ...], boundaries: Sequence[Path]) -> ModelRecord:
    sizes = {file.name: file.size for file in files}
    record = ModelRecord(
        name=folder.repo,
        repo=folder.repo,
        path=folder.path,
        source=folder.source,
        state=Availability.AVAILABLE,
        created=_creation_time(folder.path),
        files=tuple(sizes.items()),
    )
    if name := _find_escaping_link(folder.path, sizes, boundaries):
        return _unusable(
            replace(record, escapes=True),
            f"{name} is a link to a path outside the store; to allow it, add the target's folder to `models.roots`",
        )
    if "config.json" not in sizes:
        return _partial(record, "config.json is missing")
    try:
        config = metadata.read_json_object(folder.path / "config.json")
    except (OSError, ValueError) as error:
        return _unusable(record, f"config.json cannot be read: {error}")
    weights = safetensors.read(folder.path)
    record = _check(_describe(record, config, weights), config, sizes, weights.missing)
    return _add_pipeline(record, config) if record.task == "embed" and record.reason is None else record


def _describe(record: ModelRecord, config: Mapping[str, Any], weights: safetensors.Weights) -> ModelRecord:
    """Add what the config and the weights state."""
    files = dict(record.files)
    task = metadata.task(config, files)
    generates = task == "generate"
    if generates and metadata.ranks_documents(record.path, record.repo):
        task = "rerank"
    chats = task == "generate"
    capabilities = metadata.capabilities(record.path, config, files) if chats else Capabilities(completion=False)
    has_tower = chats and vision.is_vision_model(config, files)
    return replace(
        record,
        architecture=metadata.architecture(config),
        quantization=metadata.quantization(config),
        parameters=memory.count_parameters(weights.tensors, config) or None,
        context_length=metadata.context_length(config),
        task=task,
        runner=("vision" if capabilities.vision else "text") if generates else "encoder",
        capabilities=capabilities,
        vision_refusal=vision.find_refusal(config) if has_tower else None,
        generation=metadata.generation_defaults(record.path) if generates else GenerationDefaults(),
        memory=MemoryEstimate(
            weights.nbytes,
            memory.cache_bytes_per_token(config) if generates else 0,
            0 if generates else memory.pass_bytes_per_token(config),
        ),
    )


def _add_pipeline(record: ModelRecord, config: Mapping[str, Any]) -> ModelRecord:
    """Add how the model embeds, or why it cannot."""
    try:
        pipeline = embedding.read_pipeline(record.path, config)
    except embedding.MissingFile as error:
        return _partial(record, str(error))
    except (OSError, ValueError) as error:
        return _unusable(record, str(error))
    lengths = [length for length in (record.context_length, pipeline.max_tokens) if length]
    return replace(record, pipeline=pipeline, context_length=min(lengths, default=None))


def _check(
    record: ModelRecord, config: Mapping[str, Any], files: Mapping[str, int], missing_weights: str | None
) -> ModelRecord:
    """Return the record as unusable if it can never be served, partial if files are missing, or else unchanged."""
    documents = {}
    for name in (_TOKENIZER_CONFIG, *_OTHER_TOKENIZER_FILES):
        try:
            documents[name] = metadata.read_json_object(record.path / name) if name in files else {}
        except (OSError, ValueError) as error:
            return _unusable(record, f"{name} cannot be read: {error}")
    tokenizer_config = documents[_TOKENIZER_CONFIG]
    if reason := compatibility.find_incompatibility(config, files, tokenizer_config):
        return _unusable(record, reason)
    if reason := tokenizers.find_missing(files, config, tokenizer_config):
        return _partial(record, reason)
    if reason := tokenizers.find_damage(record.path, files):
        return _partial(record, reason)
    if missing_weights:
        copy = copies.read_copy(record.path) if record.source == "imported" else None
        return _partial(record, copy.description if copy else missing_weights)
    return record


def _partial(record: ModelRecord, reason: str) -> ModelRecord:
    return replace(record, state=Availability.PARTIAL, reason=reason)


def _unusable(record: ModelRecord, reason: str) -> ModelRecord:
    return replace(record, state=Availability.UNUSABLE, reason=reason)


def _list_files(folder: Path) -> tuple[_File, ...]:
    """Return the regular files of a model, including targets of links but not broken links."""
    files = []
    try:
        for entry in _entries(folder):
            if (file := _stat_file(entry, entry.name)) is not None:
                files.append(file)
            elif model_files.is_subfolder(entry.name) and entry.is_dir():
                files += _list_subfolder(entry)
    except OSError:
        return ()
    return tuple(sorted(files, key=lambda file: file.name))


def _list_subfolder(subfolder: os.DirEntry[str]) -> list[_File]:
    names = ((entry, f"{subfolder.name}/{entry.name}") for entry in _entries(subfolder))
    files = [_stat_file(entry, name) for entry, name in names if model_files.is_in_subfolder(name)]
    return [file for file in files if file is not None]


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _stat_file(entry: os.DirEntry[str], name: str) -> _File | None:
    """Return None for folders, broken or circular links, and names that are not UTF-8."""
    try:
        status = entry.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or not is_utf8(name):
        return None
    return _File(name, status.st_size, status.st_mtime_ns, status.st_ino)


def _find_escaping_link(folder: Path, names: Mapping[str, int], boundaries: Sequence[Path]) -> str | None:
    """Return the name of a file or folder whose target is outside all boundaries, or None."""
    allowed = [os.path.realpath(boundary) + os.sep for boundary in boundaries]
    for name in (*_find_subfolder_links(folder), *names):
        target = os.path.realpath(folder / name)
        if not any(target.startswith(boundary) for boundary in allowed):
            return name
    return None


def _find_subfolder_links(folder: Path) -> Iterator[str]:
    """Return the names of the subfolders with files of the model, and of what they contain."""
    with contextlib.suppress(OSError):
        for entry in _entries(folder):
            if model_files.is_subfolder(entry.name):
                yield entry.name
                with contextlib.suppress(OSError):
                    yield from (f"{entry.name}/{each.name}" for each in _entries(entry))


def _creation_time(folder: Path) -> int:
    """Return when the model was added: the time of its config, for a link that of the link and not of its target."""
    for path in (folder / "config.json", folder):
        try:
            return int(path.lstat().st_mtime)
        except OSError:
            continue
    return 0
