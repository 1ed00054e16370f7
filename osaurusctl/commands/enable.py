import click

from osaurusctl.command import Command
from osaurusctl.output import Output
from osaurusctl.service import service


@click.command("enable", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Have the installed service start at login again."""
    manager = service.needed()
    manager.enabling().act()
    running = manager.facts().running
    output.show({"enabled": True, "running": running}, "the service starts at login")
    if not running:
        output.note("`osaurusctl start` starts it now")
