import click

from osaurusctl.command import Command
from osaurusctl.output import Output
from osaurusctl.service import control, service
from osaurusctl.service.manager import Manager


@click.command("stop", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Stop the installed service until it is started or the user logs in again."""
    perform(output, service.needed())


def perform(output: Output, manager: Manager) -> None:
    """Stop `manager`'s service, and say so."""
    service.refuse_inside()
    pid = control.stop(manager)
    first = f"the service (pid {pid}) has stopped" if pid else "the service was not running"
    output.show({"pid": pid}, first)
    until = "`osaurusctl start`" if manager.facts().enabled is False else "`osaurusctl start` or the next login"
    output.note(f"it stays stopped until {until}")
