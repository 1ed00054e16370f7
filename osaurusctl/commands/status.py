import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import RESTART
from osaurusctl.layout import age, labelled, size, table
from osaurusctl.output import Output
from osaurusd import __version__
from osaurusd.wire.admin import IN_MEMORY, DaemonStatus


@click.command("status", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Show how the daemon is and where its files lie."""
    status = connect().status(any_version=True)
    output.show(status, _describe(status))


def _describe(status: DaemonStatus) -> str:
    loaded = [
        f"{worker.model} ({worker.state}, {size(worker.memory_bytes)})"
        for worker in status.workers
        if worker.state in IN_MEMORY
    ]
    rows = [
        ("version", status.version),
        ("pid", str(status.pid)),
        ("uptime", age(status.uptime_seconds)),
        *labelled("endpoints", status.endpoints),
        ("socket", status.socket),
        ("config", status.config_file),
        ("log", status.log_file),
        ("models", f"{status.models_available} available, imported ones in {status.models_dir}"),
        ("default", status.default_model or "none"),
        ("memory", f"{size(status.memory_used_bytes)} of {size(status.memory_budget_bytes)} for models"),
        *labelled("loaded", loaded),
        *(labelled("faults", status.faults) if status.faults else []),
    ]
    text = table(rows)
    if status.version != __version__:
        text += f"\nosaurusctl is {__version__}: {RESTART} restarts the daemon to finish the upgrade"
    return text
