import click

from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.errors import DaemonNotRunning
from osaurusctl.output import Output
from osaurusd import __version__
from osaurusd.wire.admin import API_VERSION


@click.command("version", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Show the versions of this program and the daemon."""
    lines = [f"osaurusctl {__version__} (API {API_VERSION})"]
    daemon = None
    try:
        status = connect().status(any_version=True)
        daemon = {"version": status.version, "api_version": status.api_version, "pid": status.pid}
        lines.append(f"osaurusd {status.version} (API {status.api_version}, pid {status.pid})")
    except DaemonNotRunning as error:
        output.note(str(error))
    output.show({"version": __version__, "api_version": API_VERSION, "daemon": daemon}, "\n".join(lines))
