"""Find the repository for an approximate name: search the hub, and let the user choose."""

import re
from collections.abc import Iterator

import click

from osaurusctl.client import Client
from osaurusctl.command import can_prompt
from osaurusctl.errors import CliError, ExitCode
from osaurusctl.formatting import format_table
from osaurusctl.output import Output
from osaurusctl.progress import spinner
from osaurusctl.recommended import MODELS
from osaurusd.wire.errors import ErrorCode
from osaurusd.wire.pulls import FoundModel, PullInfo, SearchRequest
from osaurusd.wire.sizes import format_bytes

_AUTHORS = ("mlx-community", None)
_MAX_CHOICES = 9

_LETTER_DIGIT = re.compile(r"(?<=[a-z])(?=\d)")
_SEPARATORS = re.compile(r"[\s._:-]+")


def start_pull(client: Client, name: str, token: str | None, output: Output, *, take_first: bool) -> PullInfo:
    """Start the download of `name`; if no model has that name, of a model on the hub that the user chooses.

    Raises:
        CliError: the daemon rejected the pull, or nothing on the hub matches.
    """
    try:
        return client.pull(name, token)
    except CliError as error:
        if error.body.code != ErrorCode.MODEL_NOT_FOUND or "/" in name:
            raise
        words, separator, revision = name.partition("@")
        with spinner(output, f"searching the hub for {words}"):
            found = _search(client, words, token)
        if not found:
            raise
        repo = _choose(words, found, output, take_first=take_first)
    return client.pull(f"{repo}{separator}{revision}", token)


def spellings(name: str) -> Iterator[str]:
    """Yield what to search for: the hub finds `gemma-3` only with its dash, not as `gemma3`."""
    lower = name.lower()
    dashed = _LETTER_DIGIT.sub("-", lower)
    seen = []
    for spelling in (lower, dashed, _SEPARATORS.sub("-", lower), _SEPARATORS.sub(" ", dashed)):
        if spelling not in seen:
            seen.append(spelling)
            yield spelling


def _search(client: Client, name: str, token: str | None) -> list[FoundModel]:
    """Return the models that match, those that fit first, then recommended and then popular ones."""
    recommended = {model.repo for model in MODELS}
    for author in _AUTHORS:
        for words in spellings(name):
            found = client.search(SearchRequest(words=words, author=author, limit=_MAX_CHOICES, token=token))
            if found:
                return sorted(found, key=lambda model: (model.fits is False, model.repo not in recommended))
    return []


def _choose(name: str, found: list[FoundModel], output: Output, *, take_first: bool) -> str:
    if take_first:
        output.note(f"{name}: pulling {found[0].repo}")
        return found[0].repo
    if not can_prompt(output):
        listed = "\n".join(f"{model.repo} ({_describe(model)})" for model in found)
        raise CliError(
            f'no model is named "{name}". Models on the hub that match:\n{listed}',
            hint='run "osaurusctl pull ORG/REPO", or pass --yes to take the first',
            exit_code=ExitCode.MODEL_NOT_FOUND,
            code=ErrorCode.MODEL_NOT_FOUND,
        )
    output.note(f'no model is named "{name}". Models on the hub that match:')
    output.note(format_table((f"{number}", model.repo, _describe(model)) for number, model in enumerate(found, 1)))
    choice = output.choose(f"Which one? 1 to {len(found)}, or q to quit", len(found))
    if choice is None:
        output.note("nothing downloaded")
        raise click.exceptions.Exit(ExitCode.FAILURE)
    return found[choice - 1].repo


def _describe(model: FoundModel) -> str:
    size = format_bytes(model.bytes) if model.bytes else "size unknown"
    return f"{size}, does not fit into memory" if model.fits is False else size
