"""Commands that show what happened: logs, events."""

import contextlib
import datetime

import click

from osaurusctl import log_file
from osaurusctl.client import connect
from osaurusctl.command import Command, exit_on_interrupt
from osaurusctl.errors import CliError, InvalidReply
from osaurusctl.log_file import LEVELS, LogFilter
from osaurusctl.output import Output
from osaurusd.wire import paths
from osaurusd.wire.residency import Event
from osaurusd.wire.sizes import format_bytes


def _parse_since(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime.datetime | None:
    if value is None:
        return None
    try:
        return log_file.parse_since(value, datetime.datetime.now().astimezone())
    except ValueError as error:
        raise click.BadParameter("use a duration such as 10m, 2h or 1d, or a time such as 2026-01-31T12:00") from error


@click.command("logs", cls=Command, examples=["osaurusctl logs -f", "osaurusctl logs --since 1h --level warning"])
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until Ctrl-C")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Number of recent lines to print"
)
@click.option(
    "--since", metavar="TIME", callback=_parse_since, help="Only print lines since then: 10m, 2h, 1d, or a time"
)
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="Only print lines of at least this level")
@click.pass_obj
def logs(output: Output, follow: bool, lines: int, since: datetime.datetime | None, level: str) -> None:
    """Show the daemon's log

    Works without a running daemon. With --json, print the lines as they are in the file.
    """
    file = paths.resolve().log_file
    log_filter = LogFilter(level=level, since=since)
    stream = log_file.open_log(file)
    if stream is None and not follow:
        raise CliError(f"no log file at {file}", hint='run "osaurusctl up" to start osaurusd, which creates it')
    with stream or contextlib.nullcontext():
        for record in log_file.read_last(file, lines, log_filter, stream):
            output.show(record, log_file.format_record(record))
        if follow:
            with exit_on_interrupt():
                for record in log_file.follow(file, log_filter, stream):
                    output.show(record, log_file.format_record(record))


@click.command("events", cls=Command, examples=["osaurusctl events", "osaurusctl events --follow --json"])
@click.option("-f", "--follow", is_flag=True, help="Keep printing new events until Ctrl-C")
@click.pass_obj
def events(output: Output, follow: bool) -> None:
    """Show recent events: loads, evictions, crashes, drains"""
    with exit_on_interrupt(), contextlib.closing(connect().events(follow=follow)) as stream:
        for event in stream:
            output.show(event, _format_event(event))
    if follow:
        raise InvalidReply("the event stream ended, because the daemon stopped or this command read too slowly")


def _format_event(event: Event) -> str:
    local_time = datetime.datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
    facts = [
        *([event.cause] if event.cause else []),
        *([f"host {event.host}"] if event.host else []),
        *([f"{event.seconds:.1f} s"] if event.seconds is not None else []),
        *([format_bytes(event.bytes)] if event.bytes is not None else []),
        *([f"rank {event.rank}"] if event.rank is not None else []),
        *([f"pid {event.pid}"] if event.pid is not None else []),
    ]
    first, *rest = (event.reason or "").splitlines() or [""]
    details = f" ({', '.join(facts)})" if facts else ""
    line = f"{local_time}  {event.kind:<14}  {event.model or 'osaurusd'}{details}"
    return "\n".join([line + (f": {first}" if first else ""), *(f"    {line}" for line in rest)])
