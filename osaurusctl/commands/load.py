import click

from osaurusctl import complete
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.duration import Duration
from osaurusctl.layout import size
from osaurusctl.output import Output
from osaurusd.wire.residency import LoadPhases


@click.command("load", cls=Command)
@click.argument("name", shell_complete=complete.available)
@click.option(
    "--keep-alive",
    type=Duration(),
    help="Unload it when nobody has used it for so long, such as `90s`, `15m`, `1h`; `-1` is never.",
)
@click.pass_obj
def command(output: Output, name: str, keep_alive: float | None) -> None:
    """Load the model NAME into memory and wait until it is ready."""
    worker = connect().load(name, keep_alive)
    took = "" if worker.load_seconds is None else f" in {worker.load_seconds:.1f} s"
    where = f" on {worker.device}" if worker.device else ""
    phases = f" ({_phases(worker.load_phases)})" if worker.load_phases else ""
    output.show(worker, f"{worker.model} is loaded{where}: {size(worker.memory_bytes)}{took}{phases}")


def _phases(phases: LoadPhases) -> str:
    spent = (("spawn", phases.spawn_seconds), ("imports", phases.import_seconds), ("weights", phases.weights_seconds))
    parts = [f"{name} {seconds:.2f} s" for name, seconds in spent]
    return ", ".join(["spare worker", *parts[2:]] if phases.spare else parts)
