"""Where models are stored: the models folder, the Hugging Face cache, and extra roots. Blocking; run in a thread."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from osaurusd.config import Config
from osaurusd.models.record import Source

IMPORTING_PREFIX = ".importing-"
"""Prefix of folders in which imports stage their files."""

REMOVING_PREFIX = ".removing-"
"""Prefix of folders that are being removed."""

COPYING_PREFIX = ".copying-"
"""Prefix of folders with partial copies of other hosts' models. They are kept, and a later copy resumes."""

STAGING_PREFIXES = (IMPORTING_PREFIX, REMOVING_PREFIX)

_COMMIT = re.compile(r"[0-9A-Za-z._-]{1,255}")


class Root(msgspec.Struct, frozen=True):
    """A folder that is searched for models."""

    source: Source
    path: Path


class ModelFolder(msgspec.Struct, frozen=True):
    """A folder with a complete or incomplete model. Its links must stay inside `boundary`."""

    repo: str
    path: Path
    source: Source
    boundary: Path


def extra_roots(config: Config) -> list[Path]:
    """Return the configured folders of other programs."""
    return [Path(root).expanduser() for root in config.models.roots]


def hub_cache(env: Mapping[str, str] = os.environ) -> Path:
    """Return the Hugging Face cache, by the same rules as huggingface_hub."""
    if cache := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return _expand(cache)
    if home := env.get("HF_HOME"):
        return _expand(home) / "hub"
    return _expand(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def repo_folder(hub: Path, repo: str) -> Path:
    """Return the folder in which a Hugging Face cache keeps the repository `ORG/NAME`."""
    return hub / "--".join(["models", *repo.split("/")])


def pulls_folder(hub: Path) -> Path:
    """Return the folder for partial downloads, which has a subfolder for each repository.

    It is inside the cache so that a finished file becomes part of the cache by a rename, and below `.locks`, which
    huggingface_hub and the scanner skip when they list models.
    """
    return hub / ".locks" / ".osaurus-pulls"


def find_model_folders(root: Root) -> Iterator[ModelFolder]:
    """Yield the model folders of a root; none if the root does not exist.

    Raises:
        OSError: the root cannot be read.
    """
    if root.source == "imported":
        yield from _imported_models(root)
        return
    if root.source == "extra" and (root.path / "config.json").exists():
        yield ModelFolder(root.path.name, root.path, root.source, root.path)
        return
    for path in _subfolders(root.path):
        if path.name.startswith("models--") and (path / "snapshots").is_dir():
            yield from _cached_model(root, path)
        elif root.source == "extra":
            yield from _extra_models(root, path)


def _imported_models(root: Root) -> Iterator[ModelFolder]:
    for path in _subfolders(root.path):
        if not path.name.startswith("."):
            yield ModelFolder(path.name, path, root.source, root.path)


def _cached_model(root: Root, repo: Path) -> Iterator[ModelFolder]:
    name = "/".join(repo.name.split("--")[1:])
    if name and (snapshot := _current_snapshot(repo)):
        yield ModelFolder(name, snapshot, root.source, root.path)


def _extra_models(root: Root, path: Path) -> Iterator[ModelFolder]:
    """Yield `NAME` or `ORG/NAME` folders, the layouts of other local servers."""
    if path.name.startswith("."):
        return
    if (path / "config.json").exists():
        yield ModelFolder(path.name, path, root.source, root.path)
        return
    for subfolder in _subfolders(path):
        if (subfolder / "config.json").exists():
            yield ModelFolder(f"{path.name}/{subfolder.name}", subfolder, root.source, root.path)


def _current_snapshot(repo: Path) -> Path | None:
    """Return the revision that `main` refers to, or else the newest one; never a path outside the repository."""
    try:
        commit = (repo / "refs" / "main").read_text(errors="replace").strip()
    except OSError:
        snapshots = _subfolders(repo / "snapshots")
        return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    return repo / "snapshots" / commit if _COMMIT.fullmatch(commit) and commit not in (".", "..") else None


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if is_utf8(entry.name) and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_utf8(name: str) -> bool:
    """Whether a file name is valid UTF-8. Other names cannot be sent as JSON."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
