"""Commands that report on the daemon: status, version."""

import click
import msgspec

from osaurusctl.client import Client, connect
from osaurusctl.command import Command
from osaurusctl.commands.drain import describe_drain
from osaurusctl.errors import RESTART, DaemonNotRunning, ExitCode
from osaurusctl.formatting import format_duration, format_table, labeled_rows
from osaurusctl.output import Output
from osaurusctl.ranks import describe_hosts, describe_lease
from osaurusctl.service import control, lookup
from osaurusctl.service.manager import ServiceStatus
from osaurusd import __version__
from osaurusd.wire import paths
from osaurusd.wire.admin import API_VERSION, IN_MEMORY, DaemonStatus
from osaurusd.wire.keys import Protection
from osaurusd.wire.sizes import format_bytes

Rows = list[tuple[str, str]]


@click.command("status", cls=Command, examples=["osaurusctl status", "osaurusctl status --json"])
@click.pass_obj
def status(output: Output) -> None:
    """Show the status of the daemon and its service

    Includes file locations, memory use, loaded models and current problems.
    """
    locations = paths.resolve()
    manager = lookup.find_own_or_loaded_service()
    service = manager.status() if manager is not None else None
    try:
        daemon = Client(locations.socket).status(any_version=True)
    except DaemonNotRunning:
        if service is None:
            raise
        _show_stopped_service(output, service)
    document = msgspec.to_builtins(daemon)
    document["service"] = _service_document(service, daemon)
    rows = _daemon_rows(daemon)
    if service is not None:
        rows += _service_rows(service, daemon)
    output.show(document, "\n".join([format_table(rows), *_upgrade_note(daemon)]))


@click.command("version", cls=Command, examples=["osaurusctl version"])
@click.pass_obj
def version(output: Output) -> None:
    """Show the versions of osaurusctl and the running daemon"""
    lines = [f"osaurusctl {__version__} (API {API_VERSION})"]
    daemon = None
    try:
        status = connect().status(any_version=True)
        daemon = {"version": status.version, "api_version": status.api_version, "pid": status.pid}
        lines.append(f"osaurusd {status.version} (API {status.api_version}, pid {status.pid})")
    except DaemonNotRunning as error:
        output.note(str(error))
    output.show({"version": __version__, "api_version": API_VERSION, "daemon": daemon}, "\n".join(lines))


def _show_stopped_service(output: Output, service: ServiceStatus) -> None:
    """Show the status of the service, which shows why its daemon does not run, and exit with code 3."""
    error = DaemonNotRunning(start_command="osaurusctl start")
    output.show(
        {"service": _service_document(service, None), "error": error.body}, format_table(_service_rows(service, None))
    )
    if not output.json:
        output.error(error.body, str(error), None)
    raise click.exceptions.Exit(ExitCode.NOT_RUNNING)


def _service_document(service: ServiceStatus | None, daemon: DaemonStatus | None) -> dict[str, object] | None:
    return None if service is None else {**msgspec.to_builtins(service), "ready": _is_ready(service, daemon)}


def _is_ready(service: ServiceStatus, daemon: DaemonStatus | None) -> bool:
    """Whether the service's own process serves and accepts requests."""
    return daemon is not None and control.is_ready(service, daemon) and not daemon.drain.draining


def _daemon_rows(daemon: DaemonStatus) -> Rows:
    loaded = [
        f"{worker.model} ({worker.state}, {format_bytes(worker.needs_bytes)}{describe_hosts(worker)})"
        for worker in daemon.workers
        if worker.state in IN_MEMORY and worker.lease is None
    ]
    lent = [describe_lease(worker) for worker in daemon.workers if worker.lease is not None]
    used, budget = daemon.memory_used_bytes, daemon.memory_budget_bytes
    draining = [("draining", describe_drain(daemon.drain))] if daemon.drain.draining else []
    return [
        ("version", daemon.version),
        ("pid", str(daemon.pid)),
        ("uptime", format_duration(daemon.uptime_seconds)),
        *draining,
        *labeled_rows("endpoints", daemon.endpoints),
        *([("access", _describe_access(daemon.protection))] if daemon.protection else []),
        ("socket", daemon.socket),
        ("config", daemon.config_file),
        ("log", daemon.log_file),
        ("models", f"{daemon.models_available} available; imported models are in {daemon.models_dir}"),
        ("default", daemon.default_model or "none"),
        ("memory", f"{format_bytes(used)} of {format_bytes(budget)} for models"),
        *labeled_rows("loaded", loaded),
        *(labeled_rows("lent", lent) if lent else []),
        *(labeled_rows("problems", daemon.faults) if daemon.faults else []),
    ]


def _describe_access(protection: Protection) -> str:
    """Describe which clients can connect over TCP."""
    parts = ["other machines can connect" if protection.exposed else "this machine only"]
    if not protection.key_required:
        parts.append("no API key required")
    else:
        exception = " from other machines" if protection.trusts_loopback else ""
        keys = "1 key" if protection.keys == 1 else f"{protection.keys or 'no'} keys"
        parts.append(f"API key required{exception} ({keys})")
    parts.append("TLS" if protection.tls else "no TLS")
    return ", ".join(parts)


def _service_rows(service: ServiceStatus, daemon: DaemonStatus | None) -> Rows:
    ready = _is_ready(service, daemon)
    return [
        ("service", f"{service.manager}, {service.mode}"),
        ("installed", f"yes ({service.file})" if service.installed else "no"),
        ("enabled", "unknown" if service.enabled is None else _yes_no(service.enabled)),
        ("loaded", _yes_no(service.loaded)),
        ("running", f"yes (pid {service.pid})" if service.running else f"no ({service.state})"),
        ("ready", _yes_no(ready) if ready or not service.running else f"no ({_not_ready_reason(service, daemon)})"),
        *([("starts", str(service.runs))] if service.runs is not None else []),
        *([("last exit", service.last_exit)] if service.last_exit is not None else []),
        *(labeled_rows("drift", service.drift) if service.drift else []),
    ]


def _not_ready_reason(service: ServiceStatus, daemon: DaemonStatus | None) -> str:
    if daemon is None:
        return "it does not respond"
    if daemon.pid != service.pid:
        return f"waiting for another osaurusd, pid {daemon.pid}, which uses the same home"
    if daemon.drain.draining:
        return "draining"
    return "see problems" if daemon.faults else "starting"


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _upgrade_note(daemon: DaemonStatus) -> list[str]:
    if daemon.version == __version__:
        return []
    return [f"the daemon is version {daemon.version}, osaurusctl is {__version__}; {RESTART} to finish the upgrade"]
