"""Recommended models by task, for `osaurusctl search --recommended`. Works offline.

To update the list: take models that people use now, one for each amount of memory, and run `make check-recommended`.
A test checks that the installed mlx_lm supports each architecture.
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec

from osaurusctl import config_file
from osaurusctl.client import Client
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusd.config import BUDGET_FRACTION
from osaurusd.wire import paths
from osaurusd.wire.pulls import WEIGHTS_SHARE

CHECKED = "2026-08"
"""When the list was last compared with the hub."""


class Task(StrEnum):
    CHAT = "chat"
    CODE = "code"
    REASONING = "reasoning"
    EMBED = "embed"
    RERANK = "rerank"


class RecommendedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A recommended model; `bytes` is the size of its weights and `fits` whether they fit into the memory budget."""

    task: Task
    repo: str
    architecture: str
    bytes: int
    description: str
    fits: bool | None = None
    best: bool = False


def _model(task: Task, repo: str, architecture: str, gigabytes: float, description: str) -> RecommendedModel:
    return RecommendedModel(
        task=task,
        repo=repo if "/" in repo else f"mlx-community/{repo}",
        architecture=architecture,
        bytes=int(gigabytes * 10**9),
        description=description,
    )


MODELS = (
    _model(Task.CHAT, "Llama-3.2-1B-Instruct-4bit", "llama", 0.7, "smallest, for trying things out"),
    _model(Task.CHAT, "Llama-3.2-3B-Instruct-4bit", "llama", 1.8, "fast, short answers"),
    _model(Task.CHAT, "gemma-4-e4b-it-4bit", "gemma4", 5.2, "many languages"),
    _model(Task.CHAT, "Qwen3.5-9B-MLX-4bit", "qwen3_5", 6.0, "all-round, long context"),
    _model(Task.CHAT, "gemma-4-26b-a4b-it-4bit", "gemma4", 15.4, "mixture of experts, fast for its size"),
    _model(Task.CHAT, "Qwen3.6-35B-A3B-4bit", "qwen3_5_moe", 20.4, "mixture of experts, fast for its size"),
    _model(Task.CHAT, "Qwen3.5-122B-A10B-4bit", "qwen3_5_moe", 69.6, "largest of this list"),
    _model(Task.CODE, "Qwen3.5-4B-MLX-4bit", "qwen3_5", 3.1, "small edits and scripts"),
    _model(Task.CODE, "Qwen3.6-27B-4bit", "qwen3_5", 16.1, "dense, thorough"),
    _model(Task.CODE, "Qwen3-Coder-30B-A3B-Instruct-4bit", "qwen3_moe", 17.2, "fast, for agents with tools"),
    _model(Task.CODE, "Qwen3-Coder-Next-4bit", "qwen3_next", 44.8, "for agents with tools and long context"),
    _model(Task.REASONING, "DeepSeek-R1-Distill-Qwen-1.5B-4bit", "qwen2", 1.0, "smallest that reasons"),
    _model(Task.REASONING, "Qwen3-4B-4bit", "qwen3", 2.3, "reasoning can be switched off"),
    _model(Task.REASONING, "gpt-oss-20b-MXFP4-Q8", "gpt_oss", 12.1, "adjustable effort"),
    _model(Task.REASONING, "GLM-4.7-Flash-4bit", "glm4_moe_lite", 16.9, "mixture of experts, tools"),
    _model(Task.REASONING, "gpt-oss-120b-MXFP4-Q8", "gpt_oss", 63.4, "adjustable effort, largest"),
    _model(Task.EMBED, "sentence-transformers/all-MiniLM-L6-v2", "bert", 0.09, "smallest, English, short texts"),
    _model(Task.EMBED, "Alibaba-NLP/gte-modernbert-base", "modernbert", 0.3, "English, long texts"),
    _model(Task.EMBED, "intfloat/multilingual-e5-small", "bert", 0.47, "many languages, short texts"),
    _model(Task.EMBED, "Qwen/Qwen3-Embedding-0.6B", "qwen3", 1.2, "many languages, long texts, instructions"),
    _model(Task.RERANK, "cross-encoder/ms-marco-MiniLM-L6-v2", "bert", 0.09, "smallest, English"),
    _model(Task.RERANK, "Alibaba-NLP/gte-reranker-modernbert-base", "modernbert", 0.3, "English, long texts"),
    _model(Task.RERANK, "BAAI/bge-reranker-v2-m3", "xlm-roberta", 2.3, "many languages"),
)
"""By task and size."""


def recommend(words: Iterable[str], budget_bytes: int) -> list[RecommendedModel]:
    """Return the models that every word selects, as a task or part of a repository.

    The largest of each task that fits is marked.
    """
    lowered = [word.lower() for word in words]
    models = [
        msgspec.structs.replace(model, fits=model.bytes <= budget_bytes * WEIGHTS_SHARE)
        for model in MODELS
        if all(word == model.task if word in set(Task) else word in model.repo.lower() for word in lowered)
    ]
    best = {model.task: model.repo for model in models if model.fits}
    return [msgspec.structs.replace(model, best=best.get(model.task) == model.repo) for model in models]


def memory_budget(client: Client) -> int:
    """Return the memory for models: of the daemon, or by the configuration if it does not run."""
    try:
        if budget := client.status(any_version=True).memory_budget_bytes:
            return budget
    except DaemonNotRunning:
        pass
    import psutil  # noqa: PLC0415  only here, so that the commands that download models start without it

    try:
        configured = config_file.load(paths.resolve().config_file).residency.budget_bytes
    except CliError:
        configured = None
    return configured or int(psutil.virtual_memory().total * BUDGET_FRACTION)
