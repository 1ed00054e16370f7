import click

from osaurusctl import complete, pulling
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.layout import age, size, table
from osaurusctl.output import Output
from osaurusd.wire.pulls import PullInfo

_HEADER = ("NAME", "STATE", "HERE", "SIZE", "RATE", "LEFT", "REPO", "REASON")


@click.command("pulls", cls=Command)
@click.option("--cancel", metavar="NAME", shell_complete=complete.pulls, help="End this pull; what it has stays.")
@click.pass_obj
def command(output: Output, cancel: str | None) -> None:
    """List the downloads that run, wait, or have ended lately."""
    client = connect()
    if cancel is not None:
        pull = client.cancel_pull(cancel)
        output.show(pull, f"the pull of {pull.name} is {pull.state}; the next one goes on where it was")
        return
    pulls = client.pulls()
    output.show(pulls, table([_HEADER, *map(_row, pulls)]) if pulls else "")
    if not pulls:
        output.note("nothing is downloaded; `osaurusctl pull NAME` does so")


def _row(pull: PullInfo) -> tuple[str, ...]:
    return (
        pull.name,
        pulling.state(pull),
        f"{pull.done / pull.total:.0%}" if pull.total else "-",
        size(pull.total) if pull.total else "-",
        f"{size(int(pull.bytes_per_second))}/s" if pull.bytes_per_second else "-",
        "-" if pull.seconds_left is None else age(pull.seconds_left),
        pull.repo if pull.revision == "main" else f"{pull.repo}@{pull.revision}",
        pull.error.message if pull.error else pull.note or "",
    )
