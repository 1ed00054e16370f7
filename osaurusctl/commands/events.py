import contextlib
from datetime import datetime

import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import BrokenReply
from osaurusctl.layout import size
from osaurusctl.output import Output
from osaurusd.wire.residency import Event


@click.command("events", cls=Command)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.pass_obj
def command(output: Output, follow: bool) -> None:
    """Show what happened to models lately: loads, evictions and why, crashes."""
    with contextlib.closing(connect().events(follow=follow)) as events:
        for event in events:
            output.show(event, _describe(event))
    if follow:
        raise BrokenReply("the daemon ended, or this command read too slowly")


def _describe(event: Event) -> str:
    when = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
    facts = [
        *([event.cause] if event.cause else []),
        *([f"{event.seconds:.1f} s"] if event.seconds is not None else []),
        *([size(event.bytes)] if event.bytes is not None else []),
        *([f"pid {event.pid}"] if event.pid is not None else []),
    ]
    lines = (event.reason or "").splitlines()
    about = f" ({', '.join(facts)})" if facts else ""
    head = f"{when}  {event.kind:<14}  {event.model}{about}"
    return "\n".join([head + (f": {lines[0]}" if lines else ""), *(f"    {line}" for line in lines[1:])])
