"""What the store recorded of a model's files: their digests, and which of them must be there."""

import fnmatch
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from osaurusd.models.worker.failure import StoreError

PROVENANCE = "osaurus.json"
"""The file in an imported model's folder that tells of the import."""

_TREE_FORMAT = 1

# What mlx_lm loads a model from, after `DEFAULT_ALLOW_PATTERNS` in mlx_lm/utils.py: no code and no texts besides a
# tokenizer's, and of weights only these; `consolidated.safetensors` and the like are never downloaded.
_NEEDED = (
    *("model*.safetensors", "*.json", "*.jinja"),
    *("tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"),
)


@dataclass(frozen=True)
class Digest:
    """What a file's content must hash to; `git` is SHA-1 over git's header `blob SIZE\\0` and the content."""

    algorithm: Literal["sha256", "git"]
    value: str


@dataclass(frozen=True)
class Records:
    """Digests by file name, sizes in bytes of files that must be there, and folders that links may lead into."""

    digests: Mapping[str, Digest]
    needed: Mapping[str, int]
    roots: tuple[str, ...]
    record: Path | None = None
    blobs: Path | None = None

    def digest(self, path: Path, name: str) -> Digest | None:
        """What the file `path`, called `name` in its model, was recorded to be; None if nothing was.

        Raises:
            OSError: the file's link could not be read.
        """
        if name in self.digests or self.blobs is None or not path.is_symlink():
            return self.digests.get(name)
        # The first hop names the blob. It may be a link itself, into the store that repos share.
        target = Path(os.path.normpath(path.parent / path.readlink()))
        return _of_blob(target.name) if target.parent == self.blobs else None

    def holds(self, path: Path) -> bool:
        """Whether `path`, links followed, lies where the model's files lie."""
        target = os.path.realpath(path)
        return any(target.startswith(root + os.sep) for root in self.roots)


class _TreeFile(msgspec.Struct):
    size: int
    blob_id: str
    lfs_sha256: str | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _TreeFile]


def read(snapshot: Path, record: Path | None) -> Records:
    """What is recorded of the model in the folder `snapshot`.

    Args:
        snapshot: an absolute path; in a Hugging Face cache `…/models--ORG--NAME/snapshots/COMMIT`.
        record: what an import recorded, if not `osaurus.json` in the folder.

    Raises:
        StoreError: the import's record is no JSON object of the known shape.
        OSError: it could not be read.
    """
    repo = snapshot.parent.parent
    if snapshot.parent.name == "snapshots" and repo.name.startswith("models--"):
        return _cached(repo, snapshot)
    return _imported(snapshot, record or snapshot / PROVENANCE)


def _cached(repo: Path, snapshot: Path) -> Records:
    tree = _read_tree(repo / "trees" / f"{snapshot.name}.json")
    # The last is the store that repos share: `huggingface_hub/utils/_shared_blobs.py`.
    roots = (repo, repo / "blobs", repo.parent / "blobs")
    return Records(
        digests={name: digest for name, file in tree.items() if (digest := _of_blob(file.lfs_sha256 or file.blob_id))},
        needed={name: file.size for name, file in tree.items() if _is_needed(name)},
        roots=tuple(os.path.realpath(root) for root in roots),
        blobs=repo / "blobs",
    )


def _read_tree(path: Path) -> Mapping[str, _TreeFile]:
    """The hub's list of a revision's files, as the client keeps it; empty if there is none of use.

    Format: `huggingface_hub/_tree_cache.py`. Like the library, this passes over files that it cannot read.
    """
    try:
        tree = msgspec.json.decode(path.read_bytes(), type=_Tree)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return tree.files if tree.format_version == _TREE_FORMAT else {}


def _of_blob(name: str) -> Digest | None:
    """The digest that a blob's name is: the hub's etags are SHA-256 for LFS files and git's object id for others."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return Digest("sha256", name)
    if re.fullmatch(r"[0-9a-f]{40}", name):
        return Digest("git", name)
    return None


def _is_needed(name: str) -> bool:
    # Downloads with patterns are normal: what a model does without may be absent. mlx_lm looks into no subfolder.
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in _NEEDED)


def _imported(folder: Path, record: Path) -> Records:
    digests = {name: Digest("sha256", value) for name, value in _recorded_files(record).items()}
    return Records(
        digests=digests,
        # An import wrote all that it recorded.
        needed=dict.fromkeys(digests, 0),
        roots=(os.path.realpath(folder),),
        record=record,
    )


def _recorded_files(record: Path) -> dict[str, str]:
    """The SHA-256 of each file that an import wrote; empty where it recorded none."""
    try:
        document: Any = json.loads(record.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise StoreError(f"{record.name}: it is not valid JSON") from None
    files = document.get("files", {}) if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise StoreError(f"{record.name}: its `files` are not names and digests")
    return files
