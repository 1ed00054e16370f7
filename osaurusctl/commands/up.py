import click

from osaurusctl import process
from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.commands import start
from osaurusctl.errors import DaemonNotRunning
from osaurusctl.output import Output
from osaurusctl.service import service
from osaurusd.wire import paths
from osaurusd.wire.admin import DaemonStatus


@click.command("up", cls=Command)
@click.option("--host", help="Host name or address to serve on; default: the configuration's.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to serve on; default: the configuration's.")
@click.option("--insecure", is_flag=True, help="Ask nobody for an API key, though other machines can connect.")
@click.option("--timeout", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds to wait for it.")
@click.pass_obj
def command(output: Output, host: str | None, port: int | None, insecure: bool, timeout: float) -> None:
    """Start the daemon in the background; the service, if it is installed."""
    where = paths.resolve()
    if (manager := service.ours()) is not None:
        if host is not None or port is not None or insecure:
            raise click.UsageError(
                "osaurusd is installed as a service: `osaurusctl install` takes `--host`, `--port` and `--insecure`"
            )
        start.perform(output, manager, timeout)
        return
    client = Client(where.socket)
    options = [
        *(["--host", host] if host else []),
        *(["--port", str(port)] if port is not None else []),
        *(["--insecure"] if insecure else []),
    ]
    try:
        status, started = client.status(any_version=True), False
    except DaemonNotRunning:
        process.launch(where, client, options, timeout)
        status, started = client.status(any_version=True), True
    _show(output, status, started)


def _show(output: Output, status: DaemonStatus, started: bool) -> None:
    result = {"started": started, "pid": status.pid, "endpoints": status.endpoints, "log_file": status.log_file}
    first = f"osaurusd {'is running' if started else 'was already running'} (pid {status.pid})"
    output.show(result, "\n".join([first, *status.endpoints, f"log: {status.log_file}"]))
