"""Where models may lie, and which folders below each place are models. Blocking; run in a thread."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

STAGING_PREFIXES = (".importing-", ".removing-")
"""Folders under `models/` that an import has not finished or a removal has not; never models."""

_COMMIT = re.compile(r"[0-9A-Za-z._-]{1,255}")


@dataclass(frozen=True)
class Root:
    """A place to look. `source` is `imported` for our own folder, `hub` for a Hugging Face cache, else `extra`."""

    source: str
    path: Path


@dataclass(frozen=True)
class Place:
    """A folder that holds a model or should. Its links may lead anywhere inside `boundary`."""

    repo: str
    path: Path
    source: str
    boundary: Path


def hub_cache(env: Mapping[str, str] = os.environ) -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    if cache := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(cache)
    if home := env.get("HF_HOME"):
        return _expanded(home) / "hub"
    return _expanded(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def repo_folder(hub: Path, repo: str) -> Path:
    """Where a Hugging Face cache keeps the repo `ORG/NAME`."""
    return hub / "--".join(["models", *repo.split("/")])


def pulls_folder(hub: Path) -> Path:
    """Where downloads into a Hugging Face cache lie until they are complete, a folder for each repo.

    The hub's client passes `.locks` over when it looks for models, and so do we.
    """
    return hub / ".locks" / ".osaurus-pulls"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def places(root: Root) -> Iterator[Place]:
    """The model folders below a root. One that does not exist has none.

    Raises:
        OSError: the root cannot be read.
    """
    if root.source == "imported":
        yield from _imported(root)
        return
    for path in _subdirectories(root.path):
        if path.name.startswith("models--"):
            yield from _cached(root, path)
        elif root.source == "extra":
            yield from _extra(root, path)


def _imported(root: Root) -> Iterator[Place]:
    for path in _subdirectories(root.path):
        if not path.name.startswith("."):
            yield Place(path.name, path, root.source, root.path)


def _cached(root: Root, repo: Path) -> Iterator[Place]:
    name = "/".join(repo.name.split("--")[1:])
    if name and (snapshot := _snapshot(repo)):
        yield Place(name, snapshot, root.source, root.path)


def _extra(root: Root, path: Path) -> Iterator[Place]:
    """`NAME` or `ORG/NAME` folders, as other local servers keep them."""
    if path.name.startswith("."):
        return
    if (path / "config.json").exists():
        yield Place(path.name, path, root.source, root.path)
        return
    for below in _subdirectories(path):
        if (below / "config.json").exists():
            yield Place(f"{path.name}/{below.name}", below, root.source, root.path)


def _snapshot(repo: Path) -> Path | None:
    """The revision that `main` points to, or the newest there is; never a path that leads out of the repo."""
    try:
        commit = (repo / "refs" / "main").read_text(errors="replace").strip()
    except OSError:
        snapshots = _subdirectories(repo / "snapshots")
        return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    return repo / "snapshots" / commit if _COMMIT.fullmatch(commit) and commit not in (".", "..") else None


def _subdirectories(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if _is_text(entry.name) and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_text(name: str) -> bool:
    """Whether a name can travel as JSON; file names are bytes and need not be text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
