import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import size
from osaurusctl.output import Output


@click.command("load", cls=Command)
@click.argument("name", shell_complete=complete.available)
@click.pass_obj
def command(output: Output, name: str) -> None:
    """Load the model NAME into memory and wait until it is ready."""
    worker = connect().load(name)
    took = "" if worker.load_seconds is None else f" in {worker.load_seconds:.1f} s"
    where = f" on {worker.device}" if worker.device else ""
    output.show(worker, f"{worker.model} is loaded{where}: {size(worker.memory_bytes)}{took}")
