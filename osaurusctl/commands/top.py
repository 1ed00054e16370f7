import sys
import time
from typing import Any

import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import CliError
from osaurusctl.layout import age, size
from osaurusctl.output import Output, is_terminal
from osaurusctl.workers import HEADER, last_exit, row
from osaurusd.wire.admin import DaemonStatus


@click.command("top", cls=Command)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.pass_obj
def command(output: Output, interval: float) -> None:
    """Watch the models in memory on the whole screen, until Ctrl-C.

    With --json, or where there is no terminal to fill, one look is all.
    """
    client = connect()
    status = client.status()
    if output.json:
        output.show(status, "")
        return
    if not is_terminal(sys.stdout):
        raise CliError("`top` needs a terminal", hint="`osaurusctl ps` prints the same once")
    # rich takes longer to import than other commands take to run.
    from rich.live import Live  # noqa: PLC0415

    with Live(_screen(status), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(_screen(client.status()), refresh=True)
        except KeyboardInterrupt:
            return


def _screen(status: DaemonStatus) -> Any:
    from rich.console import Group  # noqa: PLC0415
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    workers = Table(box=None, pad_edge=False, header_style="bold")
    for name in HEADER:
        workers.add_column(name, no_wrap=True)
    for worker in status.workers:
        workers.add_row(*map(Text, row(worker)))
    memory = f"{size(status.memory_used_bytes)} of {size(status.memory_budget_bytes)} for models"
    exits = [line for worker in status.workers for line in last_exit(worker)]
    return Group(
        Text(f"osaurusd {status.version}, up {age(status.uptime_seconds)}, {', '.join(status.endpoints)}"),
        Text(memory),
        ProgressBar(total=max(status.memory_budget_bytes, 1), completed=status.memory_used_bytes, width=60),
        Text(),
        workers if status.workers else Text("no model is loaded"),
        Text("\n".join(["", *status.faults, *exits])),
    )
