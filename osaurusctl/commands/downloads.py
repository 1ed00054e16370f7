"""Commands for models on the hub: search, pull."""

import os
from collections.abc import Iterable

import click

from osaurusctl import completion, fuzzy_pull, progress, recommended
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.formatting import format_duration, format_table
from osaurusctl.output import Output
from osaurusctl.recommended import RecommendedModel
from osaurusd.wire.pulls import FoundModel, PullInfo, SearchRequest
from osaurusd.wire.sizes import format_bytes, format_count

_PULLS_HEADER = ("NAME", "STATE", "DONE", "SIZE", "RATE", "LEFT", "REPO", "REASON")
_PULLS_DROP = ("REPO", "REASON", "LEFT", "RATE", "SIZE")
_SEARCH_HEADER = ("REPO", "SIZE", "PARAMS", "DOWNLOADS", "FITS", "IMAGES", "STATE")
_SEARCH_DROP = ("PARAMS", "DOWNLOADS", "STATE", "IMAGES", "FITS")
_RECOMMENDED_HEADER = ("TASK", "REPO", "SIZE", "FITS", "NOTES")
_RECOMMENDED_DROP = ("NOTES", "TASK")
_MLX_AUTHOR = "mlx-community"
_FITS = {None: "-", True: "yes", False: "no"}


@click.command(
    "search",
    cls=Command,
    examples=[
        "osaurusctl search --recommended",
        "osaurusctl search --recommended code",
        "osaurusctl search llama instruct",
        "osaurusctl search --all qwen3",
        "osaurusctl search --task embed minilm",
    ],
)
@click.argument("words", nargs=-1)
@click.option(
    "--task",
    type=click.Choice(["generate", "embed", "rerank"]),
    default="generate",
    show_default=True,
    help="What the models are for: generate text, embed texts or rerank documents",
)
@click.option("--author", help="Only list models of this author  [default: mlx-community for text models]")
@click.option("--all", "all_authors", is_flag=True, help="List models of all authors")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Maximum number of results")
@click.option("--recommended", "recommended_only", is_flag=True, help="List recommended models by task; works offline")
@click.pass_obj
def search(
    output: Output,
    words: tuple[str, ...],
    task: str,
    author: str | None,
    all_authors: bool,
    limit: int,
    recommended_only: bool,
) -> None:
    """Search the Hugging Face Hub for models

    Lists the models that match WORDS, the most downloaded first. With --recommended, searches a list of recommended
    models for chat, code, reasoning, embeddings and reranking instead of the hub.
    """
    if recommended_only:
        _show_recommended(output, words)
        return
    token = os.environ.get("HF_TOKEN") or None
    if all_authors:
        author = None
    elif author is None and task == "generate":
        author = _MLX_AUTHOR
    request = SearchRequest(words=" ".join(words), task=task, author=author, limit=limit, token=token)  # type: ignore[arg-type]  # a choice
    with progress.spinner(output, "searching the hub"):
        models = connect().search(request)
    output.show(models, _format_found(models, output.width) if models else "")
    if not models:
        output.note("no model matches" + (f" from {author}; use --all to search all authors" if author else ""))


@click.command(
    "pull",
    cls=Command,
    examples=[
        "osaurusctl pull llama-3.2-3b-instruct",
        "osaurusctl pull qwen3-4b",
        "osaurusctl pull https://huggingface.co/mlx-community/Qwen3-4B-4bit",
        "osaurusctl pull mlx-community/Qwen3-0.6B-4bit --detach",
    ],
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion.unfinished_pulls)
@click.option("--detach", is_flag=True, help="Return immediately; the daemon downloads in the background")
@click.option("-y", "--yes", is_flag=True, help="Take the first match on the hub instead of asking which one")
@click.pass_obj
def pull(output: Output, names: tuple[str, ...], detach: bool, yes: bool) -> None:
    """Download models from the Hugging Face Hub

    NAME is an API name, an alias, ORG/REPO, the URL of its page, or words to search for, such as qwen3-4b. Append
    @REVISION for a branch, tag or commit other than main.
    """
    client = connect()
    token = os.environ.get("HF_TOKEN") or None
    started = [fuzzy_pull.start_pull(client, name, token, output, take_first=yes) for name in dict.fromkeys(names)]
    pulls = {pull.id: pull for pull in started}
    if detach:
        lines = [
            f'{pull.name}: {progress.pull_status(pull)}; run "osaurusctl pulls" to see the progress'
            for pull in pulls.values()
        ]
        output.show(list(pulls.values()), "\n".join(lines))
        return
    failed = progress.follow_pulls(client, list(pulls), output)
    if failed:
        for ended in failed[:-1]:
            output.note(f"error: {progress.pull_error(ended)}")
        raise progress.pull_error(failed[-1])


@click.command("pulls", cls=Command, examples=["osaurusctl pulls", "osaurusctl pulls --cancel llama-3.2-3b-instruct"])
@click.option("--cancel", metavar="NAME", shell_complete=completion.active_pulls, help="Cancel this download")
@click.pass_obj
def pulls(output: Output, cancel: str | None) -> None:
    """List active, queued and recent downloads"""
    client = connect()
    if cancel is not None:
        pull = client.cancel_pull(cancel)
        output.show(pull, f'{pull.name}: {pull.state}; run "osaurusctl pull {pull.name}" to resume the download')
        return
    pulls = client.pulls()
    table = [_PULLS_HEADER, *map(_pull_row, pulls)]
    output.show(pulls, format_table(table, width=output.width, drop=_PULLS_DROP) if pulls else "")
    if not pulls:
        output.note('no downloads; run "osaurusctl pull NAME" to start one')


def _format_found(models: Iterable[FoundModel], width: int | None) -> str:
    return format_table([_SEARCH_HEADER, *map(_search_row, models)], width=width, drop=_SEARCH_DROP)


def _show_recommended(output: Output, words: tuple[str, ...]) -> None:
    models = recommended.recommend(words, recommended.memory_budget(connect()))
    rows = [_RECOMMENDED_HEADER, *map(_recommended_row, models)]
    table = format_table(rows, width=output.width, drop=_RECOMMENDED_DROP) if models else ""
    output.show(models, table)
    if models:
        output.note(f'run "osaurusctl pull REPO" to download one; list of {recommended.CHECKED}')
    else:
        output.note("no recommended model matches; search the hub without --recommended")


def _recommended_row(model: RecommendedModel) -> tuple[str, ...]:
    fits = "best" if model.best else _FITS[model.fits]
    return (model.task, model.repo, format_bytes(model.bytes), fits, model.description)


def _search_row(model: FoundModel) -> tuple[str, ...]:
    return (
        f"{model.repo} (gated)" if model.gated else model.repo,
        format_bytes(model.bytes) if model.bytes else "-",
        format_count(model.parameters) if model.parameters else "-",
        "-" if model.downloads is None else str(model.downloads),
        _FITS[model.fits],
        model.images or "-",
        model.state,
    )


def _pull_row(pull: PullInfo) -> tuple[str, ...]:
    return (
        pull.name,
        progress.pull_status(pull),
        f"{pull.done / pull.total:.0%}" if pull.total else "-",
        format_bytes(pull.total) if pull.total else "-",
        f"{format_bytes(int(pull.bytes_per_second))}/s" if pull.bytes_per_second else "-",
        "-" if pull.seconds_left is None else format_duration(pull.seconds_left),
        pull.repo if pull.revision == "main" else f"{pull.repo}@{pull.revision}",
        pull.error.message if pull.error else pull.note or "",
    )
