import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import table
from osaurusctl.output import Output
from osaurusctl.workers import HEADER, last_exit, row
from osaurusd.wire.admin import WorkerInfo


@click.command("ps", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """List the models in memory, those that wait to be, and those that failed."""
    workers = connect().workers()
    output.show(workers, _describe(workers) if workers else "")
    if not workers:
        output.note("no model is loaded; `osaurusctl load NAME` or a request loads one")


def _describe(workers: list[WorkerInfo]) -> str:
    exits = [line for worker in workers for line in last_exit(worker)]
    lines = [table([HEADER, *map(row, workers)]), *(["", "last exits:", *exits] if exits else [])]
    return "\n".join(lines)
