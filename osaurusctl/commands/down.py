import click

from osaurusctl import process
from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.commands import stop
from osaurusctl.errors import DaemonNotRunning
from osaurusctl.output import Output
from osaurusctl.service import service
from osaurusd.config import SHUTDOWN_GRACE_SECONDS
from osaurusd.wire import paths

_PATIENCE_SECONDS = SHUTDOWN_GRACE_SECONDS + 10


@click.command("down", cls=Command)
@click.option(
    "--timeout", type=click.FloatRange(0), default=_PATIENCE_SECONDS, show_default=True, help="Seconds to wait for it."
)
@click.pass_obj
def command(output: Output, timeout: float) -> None:
    """Stop the daemon, the service if it is installed, and wait until it is gone."""
    where = paths.resolve()
    if (manager := service.ours()) is not None and manager.facts().running:
        stop.perform(output, manager)
        return
    try:
        pid = Client(where.socket).shutdown().pid
    except DaemonNotRunning:
        # One that is already stopping has closed its socket but still holds its lock.
        if (last := process.holder(where.lock)) is None:
            raise
        pid = last
    process.wait_until_gone(where.lock, timeout)
    output.show({"pid": pid}, f"osaurusd (pid {pid}) has stopped")
