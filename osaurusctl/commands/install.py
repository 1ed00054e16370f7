from pathlib import Path

import click

from osaurusctl import config_file
from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.errors import CliError
from osaurusctl.output import Output
from osaurusctl.service import install, service
from osaurusctl.service.job import Mode, carried, given
from osaurusctl.service.manager import Manager
from osaurusd.wire import paths
from osaurusd.wire.admin import DaemonStatus

_PATIENCE_SECONDS = 60.0


@click.command("install", cls=Command)
@click.option("--host", help="Host name or address to serve on; default: the configuration's.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to serve on; default: the configuration's.")
@click.option("--insecure", is_flag=True, help="Ask nobody for an API key, though other machines can connect.")
@click.option("--env", "assignments", multiple=True, metavar="KEY=VALUE", help="A variable for the daemon; repeatable.")
@click.option("--headless", is_flag=True, help="macOS: in this user's sessions without a screen, such as over ssh.")
@click.option("--system", is_flag=True, help="macOS: from boot on, for a Mac where no one logs in; calls sudo.")
@click.option("--dry-run", is_flag=True, help="Only print the service file and the steps.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=_PATIENCE_SECONDS, show_default=True, help="To wait for it."
)
@click.pass_obj
def command(
    output: Output,
    host: str | None,
    port: int | None,
    insecure: bool,
    assignments: tuple[str, ...],
    headless: bool,
    system: bool,
    dry_run: bool,
    timeout: float,
) -> None:
    """Have the daemon run in the background from login on."""
    if headless and system:
        raise click.UsageError("`--headless` and `--system` exclude each other")
    service.refuse_root()
    where = paths.resolve()
    mode = Mode.SYSTEM if system else Mode.HEADLESS if headless else Mode.LOGIN
    manager = service.for_mode(mode)
    job = install.job_for(where, mode, carried() | given(assignments), host=host, port=port, insecure=insecure)
    if not dry_run:
        service.refuse_inside()
        manager.refuse()
        _check_configuration(where.config_file)
    plan = install.plan(manager, job, where)
    if dry_run:
        steps = [step.text for step in plan.steps]
        human = "\n".join([plan.content.decode(), *(f"{n}. {text}" for n, text in enumerate(steps, 1))])
        output.show({"file": str(manager.file), "content": plan.content.decode(), "steps": steps}, human)
        return
    status = install.carry_out(plan, Client(where.socket), timeout, output.note if system else lambda _: None)
    _show(output, manager, plan.changed, status)


def _check_configuration(file: Path) -> None:
    """A mistake that could be seen now is better said now than by a service that waits for it to be mended."""
    try:
        config_file.load(file)
    except CliError as error:
        raise CliError(str(error), hint="`osaurusctl config path` names the file; mend it, then install") from error


def _show(output: Output, manager: Manager, changed: bool, status: DaemonStatus) -> None:
    result = {"changed": changed, "file": str(manager.file), "pid": status.pid, "endpoints": status.endpoints}
    first = f"osaurusd {'is installed' if changed else 'was installed already'} and runs (pid {status.pid})"
    output.show(result, "\n".join([first, *status.endpoints]))
    if advice := manager.advice():
        output.note(advice)
