"""API names of models: the published table first, then the rule. Pure."""

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

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
"""The names that clients have been promised, by repo."""

_PUBLISHED_BY_LOWER = {repo.lower(): name for repo, name in PUBLISHED.items()}
_RESERVED = frozenset(PUBLISHED.values())

MAX_LENGTH = 96

_NAME = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_LENGTH - 1}}}")


def candidates(repo: str) -> Iterator[str]:
    """The names that a repo may have, the one it would like best first, without end."""
    lower = repo.lower()
    if published := _PUBLISHED_BY_LOWER.get(lower):
        yield published
    else:
        organization, _, name = lower.rpartition("/")
        short = re.sub(r"-it(?=-|$)", "-instruct", name.removesuffix("-4bit")) if organization else name
        # A published name belongs to its repo, whether that is here yet or not.
        yield from (wanted for wanted in (short, name) if wanted not in _RESERVED)
    yield lower
    # Repos that differ only in case.
    yield from (f"{lower}-{number}" for number in itertools.count(2))


def api_name(repo: str) -> str:
    """The name that a repo asks for, before any clash is settled."""
    return next(candidates(repo))


def assign(repos: Iterable[str], given: Mapping[str, str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A name for each repo, no two alike.

    Args:
        repos: in the order in which they may choose.
        given: names by repo that were given before; they stay.
        taken: names that belong to something else.
    """
    wanted = list(repos)
    names = {repo: given[repo] for repo in wanted if repo in given}
    used = {*names.values(), *taken}
    for repo in wanted:
        if repo not in names:
            names[repo] = next(name for name in candidates(repo) if name not in used)
            used.add(names[repo])
    return names


def is_valid(name: str) -> bool:
    """Whether `name` may be given to an imported model or an alias: it becomes a folder and an API name."""
    return _NAME.fullmatch(name) is not None


def from_file(stem: str) -> str:
    """A valid name for a model file or folder called `stem`, less its quantization mark."""
    stem = re.sub(r"[.\-_](q\d[a-z0-9_]*|f16|f32|bf16)$", "", stem.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:MAX_LENGTH].rstrip("-._") or "model"


def near(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that `name` may have meant."""
    return difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
