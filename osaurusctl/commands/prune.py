import click

from osaurusctl import consent
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import Leftover


@click.command("prune", cls=Command)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.pass_obj
def command(output: Output, yes: bool) -> None:
    """Remove what broken-off downloads and imports left behind."""
    ask = consent.needs(yes, output)
    client = connect()
    reply = client.prune(dry_run=ask)
    if ask and reply.leftovers:
        rows = [("SIZE", "WHAT", "PATH"), *((size(each.bytes), each.what, each.path) for each in reply.leftovers)]
        consent.ask(table(rows), f"Remove this for good and free {_total(reply.leftovers)}?", output)
        reply = client.prune()
    lines = [f"{each.path} is removed ({size(each.bytes)})" for each in reply.leftovers]
    output.show(reply, "\n".join([*lines, f"{_total(reply.leftovers)} freed"]) if lines else "")
    if not lines:
        output.note("nothing is left over")


def _total(leftovers: list[Leftover]) -> str:
    return size(sum(each.bytes for each in leftovers))
