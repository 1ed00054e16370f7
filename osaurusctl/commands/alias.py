import click

from osaurusctl import complete
from osaurusctl.client import Client, connect
from osaurusctl.command import Command
from osaurusctl.errors import CliError
from osaurusctl.layout import table
from osaurusctl.output import Output
from osaurusd.wire.errors import ErrorCode


@click.command("alias", cls=Command)
@click.argument("name", required=False)
@click.argument("target", required=False, shell_complete=complete.known)
@click.option("--rm", "removed", metavar="NAME", shell_complete=complete.aliases, help="Take this alias away.")
@click.pass_obj
def command(output: Output, name: str | None, target: str | None, removed: str | None) -> None:
    """Let NAME mean the model TARGET too; without arguments list the aliases."""
    if removed is not None and name is not None:
        raise click.UsageError("give either NAME and TARGET or `--rm`")
    if name is not None and target is None:
        raise click.UsageError("name the model that the alias means: `osaurusctl alias NAME TARGET`")
    client = connect()
    if removed is not None:
        gone = client.set_alias(removed, None)
        output.show(gone, f"{gone.alias} no longer means {gone.target}")
    elif name is not None:
        _add(client, name, target, output)
    else:
        _list(client, output)


def _add(client: Client, name: str, target: str | None, output: Output) -> None:
    try:
        alias = client.set_alias(name, target)
    except CliError as error:
        if error.body.code == ErrorCode.NAME_TAKEN:
            error.hint = "`osaurusctl ls` lists the names that are taken"
        raise
    output.show(alias, f"{alias.alias} means {alias.target}")


def _list(client: Client, output: Output) -> None:
    aliases = client.aliases()
    rows = [("ALIAS", "MODEL"), *((each.alias, each.target) for each in aliases)]
    output.show(aliases, table(rows) if aliases else "")
    if not aliases:
        output.note("no aliases yet; `osaurusctl alias NAME TARGET` makes one")
