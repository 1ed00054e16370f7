"""Commands that start, stop and install the daemon."""

from collections.abc import Mapping
from pathlib import Path

import click

from osaurusctl import completion, config_file, process
from osaurusctl.client import Client
from osaurusctl.command import Command, confirm_removal, needs_confirmation, timeout_option
from osaurusctl.commands import residency
from osaurusctl.errors import CliError, DaemonNotRunning
from osaurusctl.output import Output
from osaurusctl.service import control, lookup
from osaurusctl.service import install as installation
from osaurusctl.service.job import Mode, inherited_environment, parse_env_options, proxies_with_credentials
from osaurusctl.service.manager import ServiceManager, not_installed_error
from osaurusd.wire import paths
from osaurusd.wire.admin import DaemonStatus

_UP_TIMEOUT_SECONDS = 30
_SERVICE_TIMEOUT_SECONDS = 60

_host_option = click.option("--host", help="Host name or address to listen on  [default: `server.host`]")
_port_option = click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on  [default: `server.port`]")
_insecure_option = click.option(
    "--insecure", is_flag=True, help="Disable API-key authentication, even if other machines can connect"
)


@click.command("up", cls=Command, examples=["osaurusctl up", "osaurusctl up --port 9000"])
@_host_option
@_port_option
@_insecure_option
@timeout_option(_UP_TIMEOUT_SECONDS)
@click.pass_obj
def up(output: Output, host: str | None, port: int | None, insecure: bool, timeout: float) -> None:
    """Start the daemon in the background

    If osaurusd is installed as a service, start the service. Has no effect if the daemon is running.
    """
    lookup.reject_unsupported_machine()
    locations = paths.resolve()
    if (manager := lookup.find_own_service()) is not None:
        if host is not None or port is not None or insecure:
            raise click.UsageError(
                'osaurusd is installed as a service; pass --host, --port and --insecure to "osaurusctl install" instead'
            )
        _start_service(output, manager, timeout)
        return
    client = Client(locations.socket)
    try:
        status, started = client.status(any_version=True), False
    except DaemonNotRunning:
        process.start_daemon(locations, client, _serve_options(host, port, insecure), timeout)
        status, started = client.status(any_version=True), True
    _show_started(output, "osaurusd", status, started)


@click.command("serve", cls=Command, examples=["osaurusctl serve", "osaurusctl serve --port 9000"])
@_host_option
@_port_option
@_insecure_option
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration file  [default: the user's config.toml]",
)
def serve(host: str | None, port: int | None, insecure: bool, config: Path | None) -> None:
    """Run the daemon in the foreground until Ctrl-C

    The same as "osaurusd serve". Use "osaurusctl up" to run it in the background.
    """
    process.exec_daemon([*_serve_options(host, port, insecure), *(["--config", str(config)] if config else [])])


@click.command("down", cls=Command, examples=["osaurusctl down"])
@timeout_option(process.STOP_TIMEOUT_SECONDS)
@click.pass_obj
def down(output: Output, timeout: float) -> None:
    """Stop the daemon and wait until it has exited

    If it runs as a service, stop the service. Running requests may finish first. Has no effect if nothing runs.
    """
    locations = paths.resolve()
    if (manager := lookup.find_own_service()) is not None and manager.status().running:
        _stop_service(output, manager)
        return
    try:
        pid = Client(locations.socket).shutdown().pid
    except DaemonNotRunning:
        # A daemon that is shutting down has closed its socket, but still holds the lock.
        if (owner := process.lock_owner(locations.lock)) is None:
            output.show({"pid": None}, "")
            output.note("osaurusd is not running")
            return
        pid = owner
    process.wait_until_stopped(locations.lock, timeout)
    output.show({"pid": pid}, f"osaurusd (pid {pid}) stopped")


@click.command("restart", cls=Command, examples=["osaurusctl restart"])
@timeout_option(_SERVICE_TIMEOUT_SECONDS)
@click.pass_obj
def restart(output: Output, timeout: float) -> None:
    """Restart the daemon, for example after an upgrade

    Running requests may finish first. Also applies changes to the service file.
    """
    lookup.reject_inside_service()
    locations = paths.resolve()
    client = Client(locations.socket)
    manager = lookup.find_own_service()
    if manager is not None:
        status = control.restart(manager, client, timeout)
    elif process.lock_owner(locations.lock) is None:
        raise not_installed_error()
    else:
        process.restart_daemon(locations, client, timeout)
        status = client.status(any_version=True)
    result = {"pid": status.pid, "version": status.version, "endpoints": status.endpoints}
    output.show(result, "\n".join([f"osaurusd {status.version} is running (pid {status.pid})", *status.endpoints]))
    _note_drain(output, status)


@click.command("install", cls=Command, examples=["osaurusctl install", "osaurusctl install --port 9000 --dry-run"])
@_host_option
@_port_option
@_insecure_option
@click.option("--env", "assignments", multiple=True, metavar="KEY=VALUE", help="Variable for the daemon; repeatable")
@click.option("--headless", is_flag=True, help="macOS: run in non-GUI sessions, such as ssh")
@click.option("--system", is_flag=True, help="macOS: start at boot; uses sudo where necessary")
@click.option("--dry-run", is_flag=True, help="Print the service file and the steps, and change nothing")
@timeout_option(_SERVICE_TIMEOUT_SECONDS)
@click.pass_obj
def install(
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
    """Install the daemon as a login service

    Uses launchd on macOS and systemd on Linux. If the new service does not become ready, the previous one is restored.
    """
    if headless and system:
        raise click.UsageError("--headless and --system cannot be combined")
    lookup.reject_unsupported_machine()
    lookup.reject_root()
    locations = paths.resolve()
    mode = Mode.SYSTEM if system else Mode.HEADLESS if headless else Mode.LOGIN
    manager = lookup.manager_for_mode(mode)
    env = inherited_environment() | parse_env_options(assignments)
    job = installation.build_job(locations, mode, env, host=host, port=port, insecure=insecure)
    if not dry_run:
        lookup.reject_inside_service()
        manager.check_available()
        _check_configuration(locations.config_file)
    plan = installation.plan_installation(manager, job, locations)
    _warn_about_proxies(output, env)
    if dry_run:
        _show_plan(output, plan)
        return
    report_step = output.note if system else lambda _: None
    status = installation.execute(plan, Client(locations.socket), timeout, report_step)
    result = {"changed": plan.changed, "file": str(manager.file), "pid": status.pid, "endpoints": status.endpoints}
    summary = f"osaurusd is {'installed' if plan.changed else 'already installed'} and running (pid {status.pid})"
    output.show(result, "\n".join([summary, *status.endpoints]))
    if note := manager.install_note():
        output.note(note)


@click.command("uninstall", cls=Command, examples=["osaurusctl uninstall", "osaurusctl uninstall --purge"])
@click.option("--purge", is_flag=True, help="Also remove the configuration, logs and imported models")
@click.option("-y", "--yes", is_flag=True, help="Do not prompt for confirmation")
@click.pass_obj
def uninstall(output: Output, purge: bool, yes: bool) -> None:
    """Stop and remove the service

    Models, configuration and logs are kept, unless --purge is given.
    """
    lookup.reject_root()
    lookup.reject_inside_service()
    locations = paths.resolve()
    manager = lookup.find_own_or_loaded_service()
    if manager is None and not purge:
        raise not_installed_error()
    if purge and needs_confirmation(yes, output):
        preview = "\n".join(map(str, installation.purge_paths(locations)))
        confirm_removal(preview, "Permanently remove the service and all of this?", output)
    for step in installation.uninstall_steps(manager, locations) if manager is not None else []:
        step.run()
    purged = [str(path) for path in installation.purge_paths(locations)] if purge else []
    if purge:
        installation.purge(locations)
    lines = [f"service uninstalled ({manager.file})"] if manager is not None else []
    output.show(
        {"file": str(manager.file) if manager else None, "purged": purged},
        "\n".join([*lines, *(f"removed {path}" for path in purged)]),
    )
    if not purge:
        output.note('models and configuration are kept; run "osaurusctl uninstall --purge" to remove them')


@click.command("start", cls=Command, examples=["osaurusctl start"])
@timeout_option(_SERVICE_TIMEOUT_SECONDS)
@click.pass_obj
def start(output: Output, timeout: float) -> None:
    """Start the installed service and wait until it is ready

    A disabled service runs until it is stopped, and stays disabled.
    """
    _start_service(output, lookup.require_service(), timeout)


@click.command("stop", cls=Command, examples=["osaurusctl stop", "osaurusctl stop llama-3.2-3b-instruct"])
@click.argument("names", metavar="[MODEL]...", nargs=-1, shell_complete=completion.loaded_models)
@click.pass_obj
def stop(output: Output, names: tuple[str, ...]) -> None:
    """Stop the installed service, or unload the given models

    Without MODEL, stop the service until the next login; running requests may finish first. With MODEL, the same as
    "osaurusctl unload MODEL".
    """
    if names:
        residency.unload_models(output, names, force=False)
        return
    try:
        manager = lookup.require_service()
    except CliError as error:
        if process.lock_owner(paths.resolve().lock) is not None:
            error.hint = 'run "osaurusctl down" to stop the daemon, or "osaurusctl stop MODEL" to unload a model'
        raise
    _stop_service(output, manager)


@click.command("enable", cls=Command, examples=["osaurusctl enable"])
@click.pass_obj
def enable(output: Output) -> None:
    """Start the installed service at every login"""
    manager = lookup.require_service()
    manager.enable_step().run()
    running = manager.status().running
    output.show({"enabled": True, "running": running}, "the service starts at login")
    if not running:
        output.note('run "osaurusctl start" to start it now')


@click.command("disable", cls=Command, examples=["osaurusctl disable"])
@click.pass_obj
def disable(output: Output) -> None:
    """Stop the installed service, and do not start it at login"""
    lookup.reject_inside_service()
    pid = control.disable(lookup.require_service())
    output.show({"enabled": False, "pid": pid}, f"{_describe_stop(pid)} and does not start at login")
    output.note('run "osaurusctl enable" to start it at login again, or "osaurusctl start" to start it once')


def _serve_options(host: str | None, port: int | None, insecure: bool) -> list[str]:
    return [
        *(["--host", host] if host else []),
        *(["--port", str(port)] if port is not None else []),
        *(["--insecure"] if insecure else []),
    ]


def _start_service(output: Output, manager: ServiceManager, timeout: float) -> None:
    status, started = control.start(manager, Client(paths.resolve().socket), timeout)
    _show_started(output, "the service", status, started)
    if manager.status().enabled is False:
        output.note('the service is disabled and does not start at login; run "osaurusctl enable" to change that')


def _stop_service(output: Output, manager: ServiceManager) -> None:
    lookup.reject_inside_service()
    pid = control.stop(manager)
    output.show({"pid": pid}, _describe_stop(pid))
    next_start = '"osaurusctl start"' if manager.status().enabled is False else '"osaurusctl start" or the next login'
    output.note(f"it stays stopped until {next_start}")


def _describe_stop(pid: int | None) -> str:
    return f"the service (pid {pid}) stopped" if pid else "the service was not running"


def _show_started(output: Output, subject: str, status: DaemonStatus, started: bool) -> None:
    result = {"started": started, "pid": status.pid, "endpoints": status.endpoints, "log_file": status.log_file}
    summary = f"{subject} {'is running' if started else 'is already running'} (pid {status.pid})"
    output.show(result, "\n".join([summary, *status.endpoints, f"log: {status.log_file}"]))
    _note_drain(output, status)


def _note_drain(output: Output, status: DaemonStatus) -> None:
    """Say that a daemon that has started rejects requests, because it was draining before."""
    if status.drain.draining:
        output.note('the daemon is draining and rejects requests; run "osaurusctl undrain" to accept them')


def _show_plan(output: Output, plan: installation.InstallPlan) -> None:
    content = plan.content.decode()
    steps = [step.text for step in plan.steps]
    text = "\n".join([content, *(f"{number}. {step}" for number, step in enumerate(steps, 1))])
    output.show({"file": str(plan.manager.file), "content": content, "steps": steps}, text)


def _warn_about_proxies(output: Output, env: Mapping[str, str]) -> None:
    for name in proxies_with_credentials():
        if name not in env:
            output.note(f"{name} contains credentials, so the service does not get it; --env sets another proxy")


def _check_configuration(file: Path) -> None:
    """Reject an invalid configuration now, instead of installing a service that waits until it is fixed."""
    try:
        config_file.load(file)
    except CliError as error:
        raise CliError(str(error), hint='fix the file, then run "osaurusctl install" again') from error
