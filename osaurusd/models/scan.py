"""From folders to records: what each model is, and whether it can be served. Blocking; run in a thread."""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osaurusd.models import describe, loadable, memory, safetensors
from osaurusd.models.record import MemoryEstimate, ModelRecord
from osaurusd.models.roots import Place, Root, places
from osaurusd.wire.admin import ModelState

TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class _File:
    """A file of a model; what changes when another tool replaces it."""

    name: str
    size: int
    modified: int
    inode: int


class Scanner:
    """Describes the models below one root, and looks again only at those whose files have changed.

    Args:
        root: where to look.
        boundaries: roots that links may lead into, besides the one they lie in.
    """

    def __init__(self, root: Root, boundaries: Sequence[Path] = ()) -> None:
        self.root = root
        self._boundaries = boundaries
        self._known: dict[Place, tuple[tuple[_File, ...], ModelRecord]] = {}

    def scan(self) -> list[ModelRecord]:
        """Every model below the root, complete or not; names are not assigned yet.

        Raises:
            OSError: the root cannot be read.
        """
        self._known = {place: self._look(place) for place in places(self.root)}
        return [record for _, record in self._known.values()]

    def _look(self, place: Place) -> tuple[tuple[_File, ...], ModelRecord]:
        files = _files(place.path)
        known = self._known.get(place)
        if known is not None and known[0] == files:
            return known
        return files, _describe(place, files, (place.boundary, *self._boundaries))


def _describe(place: Place, found: tuple[_File, ...], boundaries: Sequence[Path]) -> ModelRecord:
    files = {file.name: file.size for file in found}
    record = ModelRecord(
        name=place.repo,
        repo=place.repo,
        path=place.path,
        source=place.source,
        state=ModelState.AVAILABLE,
        created=_arrived(place.path),
        files=tuple(files.items()),
    )
    if escaping := _leads_out(place.path, files, boundaries):
        return _unusable(replace(record, escapes=True), f"{escaping} links to a place outside the store")
    if "config.json" not in files:
        return _partial(record, "config.json is missing")
    try:
        config = describe.read_object(place.path / "config.json")
    except (OSError, ValueError) as error:
        return _unusable(record, f"config.json cannot be read: {error}")
    weights = safetensors.read(place.path)
    record = replace(
        record,
        architecture=describe.architecture(config),
        quantization=describe.quantization(config),
        parameters=memory.parameters(weights.tensors, config) or None,
        context_length=describe.context_length(config),
        generation=describe.generation_defaults(place.path),
        memory=MemoryEstimate(weights.nbytes, memory.cache_bytes_per_token(config)),
    )
    return _judge(record, config, files, weights.missing)


def _judge(
    record: ModelRecord, config: Mapping[str, Any], files: Mapping[str, int], missing_weights: str | None
) -> ModelRecord:
    """Unusable for what it is, partial for what it lacks, or available."""
    if reason := loadable.refusal(config, files, lambda: describe.tokenizer_needs_code(record.path)):
        return _unusable(record, reason)
    if not loadable.has_tokenizer(files):
        return _partial(record, "no tokenizer")
    if missing_weights:
        return _partial(record, missing_weights)
    return record


def _partial(record: ModelRecord, reason: str) -> ModelRecord:
    return replace(record, state=ModelState.PARTIAL, reason=reason)


def _unusable(record: ModelRecord, reason: str) -> ModelRecord:
    return replace(record, state=ModelState.UNUSABLE, reason=reason)


def _files(folder: Path) -> tuple[_File, ...]:
    """The files in a folder, links followed; broken links are left out."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if (file := _file(entry)) is not None:
                    found.append(file)
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda file: file.name))


def _file(entry: os.DirEntry[str]) -> _File | None:
    """The file, or None for what is none: a folder, a link to nowhere or to itself, a name that is no text."""
    try:
        entry.name.encode()
        facts = entry.stat()
    except (OSError, UnicodeEncodeError):
        return None
    return _File(entry.name, facts.st_size, facts.st_mtime_ns, facts.st_ino) if stat.S_ISREG(facts.st_mode) else None


def _leads_out(folder: Path, names: Mapping[str, int], boundaries: Sequence[Path]) -> str | None:
    """A file or folder that is a link to somewhere outside all boundaries, if there is one."""
    allowed = [os.path.realpath(boundary) + os.sep for boundary in boundaries]
    for name in (*names, *_templates(folder)):
        target = os.path.realpath(folder / name)
        if not any(target.startswith(boundary) for boundary in allowed):
            return name
    return None


def _templates(folder: Path) -> list[str]:
    """The one folder that a tokenizer looks into (transformers' `CHAT_TEMPLATE_DIR`), and what is in it."""
    try:
        return [TEMPLATES, *(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        return [TEMPLATES]


def _arrived(folder: Path) -> int:
    """When the model came: its config's own time, for a link the link's and not its target's."""
    for path in (folder / "config.json", folder):
        try:
            return int(path.lstat().st_mtime)
        except OSError:
            continue
    return 0
