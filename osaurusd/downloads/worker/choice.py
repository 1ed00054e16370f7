"""Which files of a repo are downloaded, and which repos are not. Pure.

Only names at the top of the repo are taken: mlx_lm looks into no subfolder, and a name without a slash leads nowhere.
What is taken is listed, so pickles, code and whatever else there may be never come.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osaurusd.downloads.worker.failure import PullError
from osaurusd.models import describe, loadable
from osaurusd.models.safetensors import INDEX

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"

_WEIGHTS = "model*.safetensors"
_TEXTS = (
    *("*.json", "*.jsonl", "*.txt", "*.jinja", "*.tiktoken"),
    *("tokenizer.model", "tiktoken.model", "spiece.model", "README.md", "LICENSE*"),
)
# What mlx_lm asks the hub's client for (`DEFAULT_ALLOW_PATTERNS` in mlx_lm/utils.py); `*` goes over slashes there.
_MLX_LM = (
    *("*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "tiktoken.model"),
    *("*.txt", "*.jsonl", "*.jinja"),
)
_OTHER_WEIGHTS = {".bin": "PyTorch", ".pt": "PyTorch", ".pth": "PyTorch", ".gguf": "GGUF", ".npz": "NumPy"}

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repo at one commit; `size` is in bytes. `sha256` is there for what the hub keeps in LFS."""

    name: str
    size: int
    blob_id: str
    sha256: str | None = None
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        """What the cache calls its blob: SHA-256 for LFS files, git's object id for others."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Listing:
    """A repo at one commit: all its files."""

    repo: str
    commit: str
    files: Sequence[HubFile]


def choose(listing: Listing) -> list[HubFile]:
    """The files to download, small ones first.

    Raises:
        PullError: there is nothing that mlx_lm could load.
    """
    _refuse_odd_digests(listing)
    files = {file.name: file for file in listing.files if _is_wanted(file.name)}
    if CONFIG not in files:
        raise PullError(f"{listing.repo}: it has no config.json, so it is no model that mlx_lm could load")
    if not any(fnmatch.fnmatchcase(name, _WEIGHTS) for name in files):
        raise PullError(f"{listing.repo}: it has no model*.safetensors{_instead(listing.files)}")
    if not loadable.has_tokenizer(files):
        raise PullError(f"{listing.repo}: it has no tokenizer")
    return sorted(files.values(), key=lambda file: (fnmatch.fnmatchcase(file.name, _WEIGHTS), file.name))


def refuse_unloadable(repo: str, names: Iterable[str], contents: Mapping[str, bytes]) -> None:
    """Look into the small files before the large ones are downloaded.

    Args:
        repo: for the message.
        names: all that is to be downloaded.
        contents: of config.json, and of tokenizer_config.json and the weight index where they exist.

    Raises:
        PullError: mlx_lm could not load the model; the message says why.
    """
    names = set(names)
    config = _object(repo, CONFIG, contents[CONFIG])
    tokenizer = _object(repo, TOKENIZER_CONFIG, contents.get(TOKENIZER_CONFIG, b"{}"))
    if reason := loadable.refusal(config, names, lambda: describe.names_own_tokenizer(tokenizer)):
        raise PullError(f"{repo}: {reason}")
    shards = _object(repo, INDEX, contents.get(INDEX, b"{}")).get("weight_map", {})
    if not isinstance(shards, dict):
        raise PullError(f"{repo}: the `weight_map` of {INDEX} is no object")
    if missing := sorted({str(shard) for shard in shards.values()} - names):
        raise PullError(f"{repo}: {INDEX} names {missing[0]}, which the repo does not have")


def satisfies_mlx_lm(listing: Listing, chosen: Iterable[HubFile]) -> bool:
    """Whether the hub's client, told of all files of the repo, would find complete what mlx_lm asks it for."""
    here = {file.name for file in chosen}
    asked = {file.name for file in listing.files if any(fnmatch.fnmatch(file.name, pattern) for pattern in _MLX_LM)}
    return asked <= here


def _is_wanted(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in (_WEIGHTS, *_TEXTS))


def _refuse_odd_digests(listing: Listing) -> None:
    """Digests become file names, so they must be digests."""
    if not _GIT.fullmatch(listing.commit):
        raise PullError(f"{listing.repo}: the hub gives {listing.commit!r} as its commit")
    for file in listing.files:
        if not _GIT.fullmatch(file.blob_id) or (file.sha256 is not None and not _SHA256.fullmatch(file.sha256)):
            raise PullError(f"{listing.repo}: the hub gives no usable checksum of {file.name!r}")


def _instead(files: Iterable[HubFile]) -> str:
    kinds = {kind for file in files for suffix, kind in _OTHER_WEIGHTS.items() if file.name.endswith(suffix)}
    return f", only weights for {' and '.join(sorted(kinds))}" if kinds else ""


def _object(repo: str, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PullError(f"{repo}: {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise PullError(f"{repo}: {name} holds no JSON object")
    return value
