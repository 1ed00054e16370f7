import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import age, size, table
from osaurusctl.output import Output
from osaurusd.wire.admin import WorkerInfo

_HEADER = ("MODEL", "STATE", "MEMORY", "IN FLIGHT", "IDLE", "DEVICE", "PID")


@click.command("ps", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """List the models in memory."""
    workers = connect().workers()
    output.show(workers, table([_HEADER, *map(_row, workers)]) if workers else "")
    if not workers:
        output.note("no model is loaded; `osaurusctl load NAME` or a request loads one")


def _row(worker: WorkerInfo) -> tuple[str, ...]:
    running = f"{worker.in_flight} (+{worker.waiting} waiting)" if worker.waiting else str(worker.in_flight)
    idle = "-" if worker.idle_seconds is None else age(worker.idle_seconds)
    pid = "-" if worker.pid is None else str(worker.pid)
    return worker.model, worker.state, size(worker.memory_bytes), running, idle, worker.device or "-", pid
