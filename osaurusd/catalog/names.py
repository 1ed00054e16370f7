"""API names of models: the published table first, then the rule. Pure."""

import difflib
import re
from collections.abc import Iterable, Mapping

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

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


def api_name(repo: str) -> str:
    """The name that a repo asks for, before any clash is settled."""
    for published, name in PUBLISHED.items():
        if repo.lower() == published.lower():
            return name
    organization, _, name = repo.lower().rpartition("/")
    if not organization:
        return name  # an imported model goes by the name it was given
    name = name.removesuffix("-4bit")
    return re.sub(r"-it(?=-|$)", "-instruct", name)


def assign(repos: Iterable[str]) -> dict[str, str]:
    """A name for each repo, no two alike.

    Repos of the published table come first, then the order given; one whose name is taken goes by its full id.
    """
    published = {repo.lower() for repo in PUBLISHED}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for repo in sorted(repos, key=lambda repo: repo.lower() not in published):
        name = api_name(repo)
        if name in taken:
            name = repo.lower()
        taken.add(name)
        names[repo] = name
    return names


def is_valid(name: str) -> bool:
    """Whether `name` may be given to an imported model: it becomes a folder and an API name."""
    return _NAME.fullmatch(name) is not None


def from_file(stem: str) -> str:
    """A valid name for a model file or folder called `stem`, less its quantization mark."""
    stem = re.sub(r"[.\-_](q\d[a-z0-9_]*|f16|f32|bf16)$", "", stem.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._") or "model"


def near(name: str, names: Mapping[str, object] | Iterable[str]) -> list[str]:
    """Up to three of `names` that `name` may have meant."""
    return difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
