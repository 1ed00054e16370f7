import click

from osaurusctl.command import Command
from osaurusctl.output import Output
from osaurusctl.service import control, service


@click.command("disable", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Stop the installed service, and have it stay so through logins."""
    service.refuse_inside()
    pid = control.disable(service.needed())
    stopped = f"the service (pid {pid}) has stopped" if pid else "the service was not running"
    output.show({"enabled": False, "pid": pid}, f"{stopped}, and will not start at login")
    output.note("`osaurusctl enable` lets it start at login again, `osaurusctl start` starts it for once")
