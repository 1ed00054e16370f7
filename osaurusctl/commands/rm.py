import click

from osaurusctl import complete, consent
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import Removed, RemoveReply


@click.command("rm", cls=Command)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=complete.known)
@click.option("--yes", is_flag=True, help="Remove without asking.")
@click.option("--force", is_flag=True, help="End requests that are running.")
@click.pass_obj
def command(output: Output, names: tuple[str, ...], yes: bool, force: bool) -> None:
    """Remove the models NAME... from disk."""
    ask = consent.needs(yes, output)
    models = list(dict.fromkeys(names))
    client = connect()
    if ask:
        planned = client.remove(models, force=force, dry_run=True).removed
        rows = [("NAME", "SIZE", "REPO"), *((each.name, size(each.bytes), each.repo) for each in planned)]
        consent.ask(table(rows), f"Remove this for good and free {_total(planned)}?", output)
    reply = client.remove(models, force=force)
    output.show(reply, _describe(reply))


def _describe(reply: RemoveReply) -> str:
    lines = [f"{each.name} is removed ({size(each.bytes)})" for each in reply.removed]
    return "\n".join([*lines, f"{_total(reply.removed)} freed"])


def _total(removed: list[Removed]) -> str:
    return size(sum(each.bytes for each in removed))
