import click

from osaurusctl import process
from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.commands.start import PATIENCE_SECONDS
from osaurusctl.output import Output
from osaurusctl.service import control, manager, service
from osaurusd.wire import paths
from osaurusd.wire.admin import DaemonStatus


@click.command("restart", cls=Command)
@click.option(
    "--timeout", type=click.FloatRange(0), default=PATIENCE_SECONDS, show_default=True, help="Seconds to wait for it."
)
@click.pass_obj
def command(output: Output, timeout: float) -> None:
    """Restart the daemon; running requests may finish first."""
    service.refuse_inside()
    where = paths.resolve()
    client = Client(where.socket)
    there = service.ours()
    if there is not None:
        status = control.restart(there, client, timeout)
    elif process.holder(where.lock) is None:
        raise manager.not_installed()
    else:
        process.relaunch(where, client, timeout)
        status = client.status(any_version=True)
    _show(output, status)


def _show(output: Output, status: DaemonStatus) -> None:
    result = {"pid": status.pid, "version": status.version, "endpoints": status.endpoints}
    output.show(result, "\n".join([f"osaurusd {status.version} is running (pid {status.pid})", *status.endpoints]))
