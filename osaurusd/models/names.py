"""API names of models: the published names, the naming rule, and the registry that persists names and aliases."""

import difflib
import itertools
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from osaurusd.errors import InvalidRequest, ModelNotFound, NameTaken
from osaurusd.platform.state_file import StateFile

PUBLISHED = {
    "mlx-community/Llama-3.2-3B-Instruct-4bit": "llama-3.2-3b-instruct",
    "mlx-community/Llama-3.2-1B-Instruct-4bit": "llama-3.2-1b-instruct",
    "mlx-community/Qwen2.5-7B-Instruct-4bit": "qwen2.5-7b-instruct",
    "mlx-community/Qwen2.5-3B-Instruct-4bit": "qwen2.5-3b-instruct",
    "mlx-community/gemma-2-9b-it-4bit": "gemma-2-9b-instruct",
    "mlx-community/gemma-2-2b-it-4bit": "gemma-2-2b-instruct",
    "mlx-community/DeepSeek-R1-Distill-Qwen-1.5B-4bit": "deepseek-r1-1.5b",
    "mlx-community/OpenELM-3B-Instruct-4bit": "openelm-3b-instruct",
}
"""API names that the documentation promises, by repository."""

_PUBLISHED_BY_LOWER = {repo.lower(): name for repo, name in PUBLISHED.items()}
_RESERVED = frozenset(PUBLISHED.values())

MAX_LENGTH = 96

NAME_RULE = "use lowercase letters, digits, `.`, `_` and `-`, and start with a letter or digit"
"""The syntax of names, for error messages."""

# A name is also the name of a folder, and file systems allow 255 bytes.
_MAX_BYTES = 200
_PUNCTUATION = "._-"
_QUANTIZATION_SUFFIX = re.compile(r"([.\-_]gguf)?[.\-_](q\d[a-z0-9_]*|iq\d[a-z0-9_]*|f16|f32|bf16|fp16|mxfp4|gguf)$")

# Of the first file of a split model.
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")

# What published names say about the precision of their weights.
_PRECISION_SUFFIX = re.compile(r"[.\-_](f16|f32|bf16|fp16|fp32|fp8|\d-?bits?|mxfp[48]|nvfp4)$")

_STATE_VERSION = 1


def candidates(repo: str) -> Iterator[str]:
    """Yield the possible API names of a repository without end, the preferred one first."""
    lower = normalize(repo)
    if published := _PUBLISHED_BY_LOWER.get(lower):
        yield published
    else:
        organization, _, name = lower.rpartition("/")
        short = re.sub(r"-it(?=-|$)", "-instruct", name.removesuffix("-4bit")) if organization else name
        # Published names are reserved even while their repository is not downloaded.
        yield from (candidate for candidate in (short, name) if candidate not in _RESERVED)
    yield lower
    # Repositories whose names differ only in case.
    yield from (f"{lower}-{number}" for number in itertools.count(2))


def api_name(repo: str) -> str:
    """Return the preferred API name of a repository."""
    return next(candidates(repo))


def assign(repos: Iterable[str], existing: Mapping[str, str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return a unique name for each repository.

    Args:
        repos: in order of priority.
        existing: names by repository that were assigned before and do not change.
        reserved: names that cannot be assigned.
    """
    ordered = list(repos)
    names = {repo: existing[repo] for repo in ordered if repo in existing}
    used = {*names.values(), *reserved}
    for repo in ordered:
        if repo not in names:
            names[repo] = next(name for name in candidates(repo) if name not in used)
            used.add(names[repo])
    return names


def normalize(name: str) -> str:
    """Return the form in which names are compared: lowercase, with composed accents (macOS decomposes them)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def is_valid(name: str) -> bool:
    """Whether `name` is allowed for an imported model or an alias: it becomes a folder name and an API name."""
    return (
        name == normalize(name)
        and 0 < len(name) <= MAX_LENGTH
        and all(map(_is_name_character, name))
        and unicodedata.category(name[0])[0] in "LN"
        and len(name.encode()) <= _MAX_BYTES
    )


def from_file(stem: str) -> str:
    """Derive a valid name from the name of a model file or folder, without its quantization suffix."""
    stem = _QUANTIZATION_SUFFIX.sub("", normalize(stem))
    name = re.sub("-{2,}", "-", "".join(each if _is_name_character(each) else "-" for each in stem))
    name = name.encode()[:_MAX_BYTES].decode(errors="ignore")[:MAX_LENGTH].strip(_PUNCTUATION)
    return name if is_valid(name) else "model"


def of_path(path: Path) -> str:
    """Derive a valid name from the path of a model file or folder."""
    return from_file(_PART_SUFFIX.sub("", path.stem) if path.suffix == ".gguf" else path.name)


def of_origin(name: str) -> str:
    """Derive a valid name from that of another program, such as `llama3.2:3b` or `ORG/NAME/FILE.gguf`."""
    last = name.rpartition("/")[2].removesuffix(":latest").removesuffix(".gguf")
    return from_file(_PART_SUFFIX.sub("", last).replace(":", "-"))


def of_quantization(base: str, label: str) -> str:
    """Derive the name of a quantized model from that of its base and a label such as `8bit`."""
    stem = _PRECISION_SUFFIX.sub("", from_file(base.rpartition("/")[2]))
    return f"{stem[: MAX_LENGTH - len(label) - 1]}-{label}"


def _is_name_character(character: str) -> bool:
    """Whether a name may contain `character`: letters, digits and marks of any script, and some punctuation."""
    return character in _PUNCTUATION or unicodedata.category(character)[0] in "LMN"


def similar_names(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three of `names` that are similar to `name`."""
    return difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)


def did_you_mean(name: str, names: Iterable[str]) -> str | None:
    """Return a question that suggests similar names, or None if there are none."""
    similar = similar_names(name, names)
    return f"did you mean {' or '.join(quoted(similar))}?" if similar else None


def quoted(names: Iterable[str]) -> list[str]:
    return [f'"{name}"' for name in names]


class _State(msgspec.Struct, kw_only=True):
    """The content of the state file: names by repository, and repositories by alias."""

    version: int = _STATE_VERSION
    names: dict[str, str] = {}
    aliases: dict[str, str] = {}


class NameRegistry:
    """Persists names and aliases, so that a name stays with its model until the model is removed.

    Methods block while they write the file.

    Args:
        file: the state file; an unreadable one is moved aside, and naming starts over.
    """

    def __init__(self, file: Path) -> None:
        self._file = StateFile(file, _State())
        self._state = self._file.read()
        # Scans name models in worker threads while requests change aliases.
        self._lock = threading.Lock()

    @property
    def fault(self) -> str | None:
        """Why the state file was moved aside, if it was."""
        return self._file.fault

    @property
    def aliases(self) -> dict[str, str]:
        """Repositories by alias."""
        return dict(self._state.aliases)

    def assign_names(self, repos: Iterable[str], *, keep_missing: bool) -> dict[str, str]:
        """Return a name for each repository; one that was named before keeps its name.

        Args:
            repos: all repositories on disk, in order of priority for new names.
            keep_missing: whether other repositories keep their names, because a models folder cannot be read.
        """
        present = list(repos)
        with self._lock:
            missing = {repo: name for repo, name in self._state.names.items() if repo not in present}
            if not keep_missing:
                missing = {}
            assigned = assign(present, self._state.names, [*self._state.aliases, *missing.values()])
            if assigned | missing != self._state.names:
                self._state.names = assigned | missing
                self._save()
            return assigned

    def add_alias(self, alias: str, repo: str) -> None:
        """Add an alias for the model `repo`, or change the target of an existing one.

        Raises:
            InvalidRequest: the alias is not a valid name.
            NameTaken: the alias is the name of a model.
        """
        if not is_valid(alias):
            raise InvalidRequest(f'invalid alias "{alias}"; {NAME_RULE}', location=("alias",))
        with self._lock:
            if alias in self._state.names.values() or alias in {name.lower() for name in self._state.names}:
                raise NameTaken(f'"{alias}" is the name of a model; choose another alias', location=("alias",))
            self._state.aliases[alias] = repo
            self._save()

    def remove_alias(self, alias: str) -> str:
        """Remove an alias; returns the repository that it referred to.

        Raises:
            ModelNotFound: the alias does not exist.
        """
        with self._lock:
            if alias not in self._state.aliases:
                raise ModelNotFound(f'alias "{alias}" does not exist', location=("alias",))
            repo = self._state.aliases.pop(alias)
            self._save()
            return repo

    def forget(self, repo: str) -> None:
        """Release the name and the aliases of a removed model."""
        with self._lock:
            self._state.names.pop(repo, None)
            self._state.aliases = {alias: target for alias, target in self._state.aliases.items() if target != repo}
            self._save()

    def _save(self) -> None:
        self._file.write(self._state)
