import contextlib
import datetime

import click

from osaurusctl import log_file
from osaurusctl.command import Command
from osaurusctl.errors import CliError
from osaurusctl.log_file import LEVELS, Wanted
from osaurusctl.output import Output
from osaurusd.wire import paths


def _since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime.datetime | None:
    if value is None:
        return None
    try:
        return log_file.parse_since(value, datetime.datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter("give a span such as 10m, 2h or 1d, or a time such as 2026-01-31T12:00") from error


@click.command("logs", cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="How many of the last lines."
)
@click.option("--since", callback=_since, help="Only what is not older: 10m, 2h, 1d, or a time.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="Only this level and above.")
@click.pass_obj
def command(output: Output, follow: bool, lines: int, since: datetime.datetime | None, level: str) -> None:
    """Show what the daemon has logged; no daemon need run."""
    file = paths.resolve().log_file
    wanted = Wanted(level=level, since=since)
    stream = log_file.open_log(file)
    if stream is None and not follow:
        raise CliError(f"there is no log at {file}", hint="`osaurusctl status` tells whether osaurusd has run")
    with stream or contextlib.nullcontext():
        for record in log_file.last(file, lines, wanted, stream):
            output.show(record, log_file.shown(record))
        if follow:
            # Ctrl-C is how this is meant to end.
            with contextlib.suppress(KeyboardInterrupt):
                for record in log_file.follow(file, wanted, stream):
                    output.show(record, log_file.shown(record))
