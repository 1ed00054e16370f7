import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import RESTART
from osaurusctl.layout import labelled, table
from osaurusctl.output import Output


@click.command("reload", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Let the daemon read its configuration again."""
    reply = connect().reload()
    rows = [
        *(labelled("in force", reply.applied) if reply.applied else []),
        *(labelled("needs a restart", reply.needs_restart) if reply.needs_restart else []),
    ]
    output.show(reply, table(rows) if rows else "")
    if reply.needs_restart:
        output.note(f"{RESTART} restarts the daemon")
    elif not rows:
        output.note("nothing has changed")
