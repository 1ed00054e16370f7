"""The doctor command: run all checks and print what to fix."""

from collections.abc import Callable, Iterator

import click

from osaurusctl import config_file, stores
from osaurusctl.client import Client, connect
from osaurusctl.command import Command, can_prompt
from osaurusctl.doctor import daemon, gpu, hosts, machine, service
from osaurusctl.doctor.check import Check, Context, Verdict
from osaurusctl.errors import CliError, DaemonNotRunning, ExitCode
from osaurusctl.output import Output
from osaurusctl.service import lookup
from osaurusd.wire import paths
from osaurusd.wire.paths import Paths

_CHECKS: tuple[Callable[[Context], Iterator[Check]], ...] = (
    machine.check_support,
    daemon.check_configuration,
    service.check_launcher,
    service.check_service_file,
    service.check_job,
    service.check_spawn_type,
    service.check_priority,
    daemon.check_serving,
    daemon.check_drain,
    daemon.check_upgrade,
    daemon.list_versions,
    daemon.check_port,
    daemon.check_access,
    daemon.check_socket,
    daemon.check_open_files,
    hosts.check_ranks,
    machine.check_disk,
    machine.check_memory,
    machine.check_model_folders,
    machine.check_other_stores,
    machine.check_blas,
    machine.check_vision,
    gpu.check_gpu,
    machine.check_hub,
    hosts.check_hosts,
    machine.check_crash_output,
)
"""All checks. The problems of earlier checks can explain those of later ones."""


@click.command("doctor", cls=Command, examples=["osaurusctl doctor"])
@click.pass_obj
def doctor(output: Output) -> None:
    """Diagnose problems and suggest fixes

    On a terminal, offers to serve the models of other programs that it finds.
    Exits with code 1 if a check fails. Warnings do not count.
    """
    context = collect_context(paths.resolve())
    checks = run_checks(context)
    failed = any(check.verdict is Verdict.FAILURE for check in checks)
    output.show({"ok": not failed, "checks": checks}, "\n".join(map(_format_check, checks)))
    if context.config is not None and can_prompt(output):
        stores.offer(context.paths.config_file, connect(), output)
    if failed:
        raise click.exceptions.Exit(ExitCode.FAILURE)


def run_checks(context: Context) -> list[Check]:
    """Run all checks."""
    return [check for run_check in _CHECKS for check in run_check(context)]


def _format_check(check: Check) -> str:
    line = f"{check.verdict:<8} {check.name}: {' '.join(check.detail.split())}"
    return f"{line}\n         -> {check.fix}" if check.fix else line


def collect_context(locations: Paths) -> Context:
    """Collect the state that the checks examine. Blocking, and may take seconds."""
    manager = lookup.find_own_or_loaded_service()
    client = Client(locations.socket)
    status, diagnosis, daemon_error = None, None, None
    try:
        status = client.status(any_version=True)
        diagnosis = client.diagnosis() if status.serving else None
    except DaemonNotRunning:
        pass
    except CliError as error:
        daemon_error = str(error)
    try:
        config = config_file.load(locations.config_file)
    except CliError:
        config = None
    return Context(
        paths=locations,
        manager=manager,
        service=manager.status() if manager else None,
        config=config,
        status=status,
        diagnosis=diagnosis,
        daemon_error=daemon_error,
    )
