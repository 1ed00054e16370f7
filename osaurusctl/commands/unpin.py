import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.output import Output


@click.command("unpin", cls=Command)
@click.argument("name", shell_complete=complete.pinned)
@click.pass_obj
def command(output: Output, name: str) -> None:
    """Let the model NAME be unloaded again when it is idle or others need its memory."""
    reply = connect().pin(name, pinned=False)
    rest = f"; still pinned: {', '.join(reply.pinned)}" if reply.pinned else ""
    output.show(reply, f"{name} is not pinned{rest}")
