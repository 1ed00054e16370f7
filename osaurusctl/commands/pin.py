import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size
from osaurusctl.output import Output


@click.command("pin", cls=Command)
@click.argument("name", required=False, shell_complete=complete.available)
@click.pass_obj
def command(output: Output, name: str | None) -> None:
    """Keep the model NAME in memory, from every start of the daemon on.

    Without NAME, list the pinned models.
    """
    client = connect()
    reply = client.pins() if name is None else client.pin(name, pinned=True)
    sums = f"{size(reply.needs_bytes)} of {size(reply.budget_bytes)}"
    output.show(reply, f"pinned: {', '.join(reply.pinned)} ({sums})" if reply.pinned else "")
    if not reply.pinned:
        output.note("no model is pinned; `osaurusctl pin NAME` pins one")
