import time

import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Group
from osaurusctl.layout import table
from osaurusctl.output import Output


@click.group("key", cls=Group)
def command() -> None:
    """Make, list and revoke API keys for clients that connect over TCP.

    Keys are asked for where other machines can connect, and with `server.require_key` everywhere.
    """


@command.command("create")
@click.argument("name", required=False)
@click.pass_obj
def create(output: Output, name: str | None) -> None:
    """Make a key and print it, this once; NAME says whose it is or what for."""
    made = connect().create_key(name)
    output.show(made, made.key)
    output.note(f"this is key {made.id}, and it is not shown again; `osaurusctl key revoke {made.id}` ends it")


@command.command("ls")
@click.pass_obj
def ls(output: Output) -> None:
    """List the keys, and about when each was used last."""
    keys = connect().api_keys()
    rows = [
        ("ID", "NAME", "CREATED", "LAST USED"),
        *((key.id, key.name or "-", _when(key.created), _when(key.last_used)) for key in keys),
    ]
    output.show(keys, table(rows) if keys else "")
    if not keys:
        output.note("no keys yet; `osaurusctl key create` makes one")


@command.command("revoke")
@click.argument("key_id", metavar="ID", shell_complete=complete.keys)
@click.pass_obj
def revoke(output: Output, key_id: str) -> None:
    """Have the key with this ID refused from now on; requests that run end as they would."""
    gone = connect().revoke_key(key_id)
    output.show(gone, f"key {gone.id}{f' ({gone.name})' if gone.name else ''} is refused from now on")


def _when(seconds: int | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
