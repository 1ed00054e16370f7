"""The ui command: the page that manages the daemon."""

import os
import sys
import webbrowser

import click

from osaurusctl.client import Client
from osaurusctl.command import Command, exit_on_interrupt
from osaurusctl.errors import CliError
from osaurusctl.output import Output
from osaurusd.wire import paths


@click.command("ui", cls=Command, examples=["osaurusctl ui", "osaurusctl ui --no-browser --port 8090"])
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Loopback port  [default: a free one]")
@click.option("--no-browser", is_flag=True, help="Only print the link, instead of opening it")
@click.pass_obj
def ui(output: Output, port: int, no_browser: bool) -> None:
    """Manage models in a browser

    The page shows what the daemon's own page shows. It can also download, load, pin and remove models, and show logs
    and settings. It is served until Ctrl-C, to this machine only. The link works once and opens a session of 12 hours.
    """
    from osaurusctl.ui import server  # noqa: PLC0415 - importing aiohttp and asyncio is slow

    def report_link(link: str) -> None:
        output.note("the link was used a second time, or too late; its session has ended. The new link:")
        output.show({"url": link}, link)

    locations = paths.resolve()
    management = server.ManagementServer(locations, port, report_link, server.load_page())
    link = management.create_link()

    def show() -> None:
        output.show({"url": link}, link)
        _note_daemon(Client(locations.socket), output)
        if no_browser or not _has_display() or not webbrowser.open(link):
            output.note("open the link in a browser on this machine; press Ctrl-C to stop")
        else:
            output.note("the page opens in your browser; press Ctrl-C to stop")

    with exit_on_interrupt():
        management.run(show)


def _has_display() -> bool:
    """Whether a graphical browser can be opened. Those for terminals run no scripts."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _note_daemon(client: Client, output: Output) -> None:
    try:
        client.status(any_version=True)
    except CliError as error:
        output.note(str(error))
