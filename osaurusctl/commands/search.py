import os

import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import quantity, size, table
from osaurusctl.output import Output
from osaurusd.wire.pulls import FoundModel, SearchRequest

_HEADER = ("REPO", "SIZE", "PARAMS", "DOWNLOADS", "FITS", "STATE")
_FITS = {None: "-", True: "yes", False: "no"}


@click.command("search", cls=Command)
@click.argument("words", nargs=-1)
@click.option("--author", default="mlx-community", show_default=True, help="Whose models.")
@click.option("--all", "anybody", is_flag=True, help="Anybody's models.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.pass_obj
def command(output: Output, words: tuple[str, ...], author: str, anybody: bool, limit: int) -> None:
    """Ask the hub for MLX models that go by WORDS, the most downloaded first."""
    token = os.environ.get("HF_TOKEN") or None
    request = SearchRequest(words=" ".join(words), author=None if anybody else author, limit=limit, token=token)
    found = connect().search(request)
    output.show(found, table([_HEADER, *map(_row, found)]) if found else "")
    if not found:
        output.note("the hub has no such model" + ("" if anybody else f" of {author}; `--all` asks for anybody's"))


def _row(model: FoundModel) -> tuple[str, ...]:
    return (
        f"{model.repo} (gated)" if model.gated else model.repo,
        size(model.bytes) if model.bytes else "-",
        quantity(model.parameters) if model.parameters else "-",
        "-" if model.downloads is None else str(model.downloads),
        _FITS[model.fits],
        model.state,
    )
