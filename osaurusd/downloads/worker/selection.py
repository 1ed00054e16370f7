"""Selecting the files of a repository to download, and rejecting repositories that cannot be served.

Only files at the top level, named chat templates and the modules of embedding models are downloaded: nothing else is
read, and such names cannot lead out of the folder. The patterns are an allowlist, so that pickles and code are never
downloaded.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osaurusd.downloads.worker.errors import PullError
from osaurusd.models import compatibility, tokenizers
from osaurusd.models.safetensors import INDEX, find_missing_file, parse_weight_map
from osaurusd.wire import model_files
from osaurusd.wire.errors import as_json

CONFIG = "config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"

METADATA_FILES = frozenset({CONFIG, _TOKENIZER_CONFIG, INDEX})
"""Small files that show whether mlx_lm can load the model."""

_WEIGHTS = "model*.safetensors"
_OTHER_FILES = (
    *("*.json", "*.jsonl", "*.txt", "*.jinja", "*.tiktoken"),
    *("*.model", "README.md", "LICENSE*"),
)
# The files that mlx_lm requests (`DEFAULT_ALLOW_PATTERNS` in mlx_lm/utils.py); `*` includes slashes here.
_MLX_LM_PATTERNS = (
    *("*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "tiktoken.model"),
    *("*.txt", "*.jsonl", "*.jinja"),
)
_UNSUPPORTED_WEIGHTS = {".bin": "PyTorch", ".pt": "PyTorch", ".pth": "PyTorch", ".gguf": "GGUF", ".npz": "NumPy"}

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit. `size` is in bytes; `sha256` is set for LFS files."""

    name: str
    size: int
    blob_id: str
    sha256: str | None = None
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        """The name of the blob in the cache: SHA-256 for LFS files, git's object id for others."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    repo: str
    commit: str
    files: Sequence[HubFile]


def select_files(listing: Listing) -> list[HubFile]:
    """Return the files to download, weights last.

    Raises:
        PullError: the repository is not a model that mlx_lm can load.
    """
    _check_digests(listing)
    files = {file.name: file for file in listing.files if _is_selected(file.name)}
    if CONFIG not in files:
        raise PullError(f"{listing.repo} has no config.json; it is not a model that mlx_lm can load")
    if not any(_is_weights(name) for name in files):
        raise PullError(f"{listing.repo} has no model*.safetensors{_describe_other_weights(listing.files)}")
    return sorted(files.values(), key=lambda file: (_is_weights(file.name), file.name))


def check_metadata(repo: str, files: Iterable[str], contents: Mapping[str, bytes]) -> None:
    """Check the small files before the weights are downloaded.

    Args:
        repo: for error messages.
        files: the names of all selected files.
        contents: the content of those `METADATA_FILES` that exist, by name; config.json is required.

    Raises:
        PullError: mlx_lm cannot load the model.
    """
    names = set(files)
    config = _parse_object(repo, CONFIG, contents[CONFIG])
    tokenizer_config = _parse_object(repo, _TOKENIZER_CONFIG, contents.get(_TOKENIZER_CONFIG, b"{}"))
    reason = compatibility.find_incompatibility(config, names, tokenizer_config)
    if reason := reason or tokenizers.find_missing(names, config, tokenizer_config):
        raise PullError(f"{repo} cannot be served: {reason}")
    weight_map = _read_weight_map(contents.get(INDEX, b"{}"))
    if missing := find_missing_file(weight_map, [name for name in names if _is_weights(name)]):
        raise PullError(f"{repo}: {missing} does not exist, but {INDEX} or the names of the other files refer to it")


def is_complete_for_mlx_lm(listing: Listing, selected: Iterable[HubFile]) -> bool:
    """Whether the selected files include every file of the repository that mlx_lm requests."""
    names = {file.name for file in selected}
    return names.issuperset(
        file.name for file in listing.files if any(fnmatch.fnmatch(file.name, pattern) for pattern in _MLX_LM_PATTERNS)
    )


def _is_selected(name: str) -> bool:
    if "/" in name:
        return model_files.is_in_subfolder(name)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in (_WEIGHTS, *_OTHER_FILES))


def _is_weights(name: str) -> bool:
    return fnmatch.fnmatchcase(name, _WEIGHTS)


def _check_digests(listing: Listing) -> None:
    """Reject malformed digests, which would become file names."""
    if not _GIT.fullmatch(listing.commit):
        raise PullError(f"{listing.repo}: the hub returned the invalid commit {as_json(listing.commit)}")
    for file in listing.files:
        if not _GIT.fullmatch(file.blob_id) or (file.sha256 is not None and not _SHA256.fullmatch(file.sha256)):
            raise PullError(f"{listing.repo}: the hub returned an invalid checksum for {as_json(file.name)}")


def _describe_other_weights(files: Iterable[HubFile]) -> str:
    formats = {kind for file in files for suffix, kind in _UNSUPPORTED_WEIGHTS.items() if file.name.endswith(suffix)}
    return f", only weights for {' and '.join(sorted(formats))}" if formats else ""


def _read_weight_map(content: bytes) -> dict[str, str]:
    """Return the weight map of an index; empty if it is damaged, because mlx_lm does not use it."""
    try:
        index = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parse_weight_map(index) if isinstance(index, dict) else {}


def _parse_object(repo: str, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PullError(f"{repo}: {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise PullError(f"{repo}: {name} is not a JSON object")
    return value
