import click
import msgspec

from osaurusctl.client import Client
from osaurusctl.command import Command
from osaurusctl.errors import RESTART, DaemonNotRunning, Exit
from osaurusctl.layout import age, labelled, size, table
from osaurusctl.output import Output
from osaurusctl.service import ready, service
from osaurusctl.service.manager import Facts
from osaurusd import __version__
from osaurusd.wire import paths
from osaurusd.wire.admin import IN_MEMORY, DaemonStatus
from osaurusd.wire.keys import Protection


@click.command("status", cls=Command)
@click.pass_obj
def command(output: Output) -> None:
    """Show how the daemon and its service are, and where files lie."""
    where = paths.resolve()
    there = service.found()
    facts = there.facts() if there is not None and service.is_for(there) else None
    try:
        status = Client(where.socket).status(any_version=True)
    except DaemonNotRunning:
        if facts is None:
            raise
        _show_down(output, facts)
    document = msgspec.to_builtins(status)
    rows = _daemon(status)
    if facts is not None:
        rows += _service(facts, status)
    document["service"] = _document(facts, status)
    output.show(document, "\n".join([table(rows), *_upgrade(status)]))


def _show_down(output: Output, facts: Facts) -> None:
    """The service of a daemon that does not run; its own facts say why."""
    error = DaemonNotRunning()
    output.show({"service": _document(facts, None), "error": error.body}, table(_service(facts, None)))
    if not output.json:
        output.error(error.body, "osaurusd is not running; `osaurusctl start` starts it", None)
    raise click.exceptions.Exit(Exit.NOT_RUNNING)


def _document(facts: Facts | None, status: DaemonStatus | None) -> dict[str, object] | None:
    return None if facts is None else {**msgspec.to_builtins(facts), "ready": ready.is_ready(facts, status)}


def _daemon(status: DaemonStatus) -> list[tuple[str, str]]:
    loaded = [
        f"{worker.model} ({worker.state}, {size(worker.memory_bytes)})"
        for worker in status.workers
        if worker.state in IN_MEMORY
    ]
    return [
        ("version", status.version),
        ("pid", str(status.pid)),
        ("uptime", age(status.uptime_seconds)),
        *labelled("endpoints", status.endpoints),
        *([("access", _access(status.protection))] if status.protection else []),
        ("socket", status.socket),
        ("config", status.config_file),
        ("log", status.log_file),
        ("models", f"{status.models_available} available, imported ones in {status.models_dir}"),
        ("default", status.default_model or "none"),
        ("memory", f"{size(status.memory_used_bytes)} of {size(status.memory_budget_bytes)} for models"),
        *labelled("loaded", loaded),
        *(labelled("faults", status.faults) if status.faults else []),
    ]


def _access(protection: Protection) -> str:
    """Who gets in over TCP."""
    parts = ["other machines too" if protection.exposed else "this machine only"]
    if not protection.key_required:
        parts.append("no API key asked for")
    else:
        here = ", not on this machine" if protection.trusts_loopback else ""
        parts.append(f"API key needed{here} ({protection.keys or 'none'} there)")
    parts.append("TLS" if protection.tls else "no TLS")
    return ", ".join(parts)


def _service(facts: Facts, status: DaemonStatus | None) -> list[tuple[str, str]]:
    running = f"yes (pid {facts.pid})" if facts.running else f"no ({facts.state})"
    is_ready = ready.is_ready(facts, status)
    return [
        ("service", f"{facts.manager}, {facts.mode}"),
        ("installed", f"yes ({facts.file})" if facts.installed else "no"),
        ("enabled", "unknown" if facts.enabled is None else _yes(facts.enabled)),
        ("loaded", _yes(facts.loaded)),
        ("running", running),
        ("ready", _yes(is_ready) if is_ready or not facts.running else f"no ({_why(facts, status)})"),
        *([("starts", str(facts.runs))] if facts.runs is not None else []),
        *([("last exit", facts.last_exit)] if facts.last_exit is not None else []),
        *(labelled("drift", facts.drift) if facts.drift else []),
    ]


def _why(facts: Facts, status: DaemonStatus | None) -> str:
    if status is None:
        return "it does not answer"
    if status.pid != facts.pid:
        return f"another osaurusd, pid {status.pid}, has the home; the service waits for its end"
    return "see faults" if status.faults else "starting"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _upgrade(status: DaemonStatus) -> list[str]:
    if status.version == __version__:
        return []
    return [f"osaurusctl is {__version__}: restart to finish the upgrade ({RESTART})"]
