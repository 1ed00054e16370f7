import click

from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.output import Output
from osaurusctl.service import control, service
from osaurusctl.service.manager import Manager
from osaurusd.wire import paths

PATIENCE_SECONDS = 60.0


@click.command("start", cls=Command)
@click.option(
    "--timeout", type=click.FloatRange(0), default=PATIENCE_SECONDS, show_default=True, help="Seconds to wait for it."
)
@click.pass_obj
def command(output: Output, timeout: float) -> None:
    """Start the installed service and wait until it serves."""
    perform(output, service.needed(), timeout)


def perform(output: Output, manager: Manager, timeout: float) -> None:
    """Start `manager`'s service, and say so."""
    status, started = control.start(manager, Client(paths.resolve().socket), timeout)
    result = {"started": started, "pid": status.pid, "endpoints": status.endpoints, "log_file": status.log_file}
    first = f"the service {'is running' if started else 'was already running'} (pid {status.pid})"
    output.show(result, "\n".join([first, *status.endpoints, f"log: {status.log_file}"]))
    if manager.facts().enabled is False:
        output.note("it is disabled and will not start at login; `osaurusctl enable` changes that")
