"""Finding models on disk: the Hugging Face cache and our own folder of imported ones. Blocking; run in a thread."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osaurusd.catalog import architectures, describe, names, safetensors
from osaurusd.catalog.record import ModelRecord
from osaurusd.wire.admin import ModelState

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tiktoken.model", "vocab.json")

STAGING_PREFIX = ".importing-"
"""Folders under `models/` that an import has not finished; never models."""


@dataclass(frozen=True)
class _Folder:
    """A place where a model lies or should lie."""

    repo: str
    path: Path
    source: str


def hub_cache(env: Mapping[str, str] = os.environ) -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    if cache := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache_home = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache_home).expanduser() / "huggingface" / "hub"


def scan(models_dir: Path, hub: Path) -> list[ModelRecord]:
    """Every model below the two roots, complete or not, in the order of their names."""
    folders = [*_imported(models_dir), *_cached(hub)]
    unique = {folder.repo: folder for folder in reversed(folders)}
    records = [_describe(folder) for folder in unique.values()]
    # Models that can be served choose their names first.
    records.sort(key=lambda record: (record.state is not ModelState.AVAILABLE, record.created, record.repo))
    assigned = names.assign(record.repo for record in records)
    return sorted((replace(record, name=assigned[record.repo]) for record in records), key=lambda record: record.name)


def _imported(models_dir: Path) -> Iterator[_Folder]:
    for path in _subdirectories(models_dir):
        if not path.name.startswith("."):
            yield _Folder(path.name, path, "imported")


def _cached(hub: Path) -> Iterator[_Folder]:
    for path in _subdirectories(hub):
        kind, *parts = path.name.split("--")
        if kind == "models" and parts and (snapshot := _snapshot(path)):
            yield _Folder("/".join(parts), snapshot, "hub")


def _snapshot(repo: Path) -> Path | None:
    """The revision that `main` points to, or the newest there is."""
    try:
        return repo / "snapshots" / (repo / "refs" / "main").read_text().strip()
    except OSError:
        snapshots = _subdirectories(repo / "snapshots")
        return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _subdirectories(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def _describe(folder: _Folder) -> ModelRecord:
    files = _files(folder.path)
    record = ModelRecord(
        name=folder.repo,
        repo=folder.repo,
        path=folder.path,
        source=folder.source,
        state=ModelState.AVAILABLE,
        size_bytes=sum(files.values()),
        created=_arrived(folder.path),
    )
    if "config.json" not in files:
        return replace(record, state=ModelState.PARTIAL, reason="config.json is missing")
    try:
        config = describe.read_object(folder.path / "config.json")
    except (OSError, ValueError) as error:
        return replace(record, state=ModelState.UNUSABLE, reason=f"config.json cannot be read: {error}")
    record = replace(
        record,
        architecture=str(config.get("model_type")),
        quantization=describe.quantization(config),
        context_length=describe.context_length(config),
        generation=describe.generation_defaults(folder.path),
    )
    return _judge(record, config, files)


def _judge(record: ModelRecord, config: dict[str, Any], files: Mapping[str, int]) -> ModelRecord:
    """Unusable for what it is, partial for what it lacks, or available."""
    if record.architecture not in architectures.supported():
        reason = f"mlx_lm has no architecture `{record.architecture}`"
        return replace(record, state=ModelState.UNUSABLE, reason=reason)
    if config.get("model_file") is not None:
        return replace(record, state=ModelState.UNUSABLE, reason="it needs code of its own, which is never run")
    if not any(name in files for name in TOKENIZER_FILES):
        return replace(record, state=ModelState.PARTIAL, reason="no tokenizer")
    if missing := safetensors.missing_weights(record.path):
        return replace(record, state=ModelState.PARTIAL, reason=missing)
    return record


def _files(folder: Path) -> dict[str, int]:
    """Names and sizes in bytes of the files in a folder, links followed; broken links are left out."""
    sizes: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    except OSError:
        return {}
    return sizes


def _arrived(folder: Path) -> int:
    """When the model came: its config's own time, for a link the link's and not its target's."""
    for path in (folder / "config.json", folder):
        try:
            return int(path.lstat().st_mtime)
        except OSError:
            continue
    return 0
