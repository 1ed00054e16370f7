"""Waiting until the very process that the service manager started serves."""

import time

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.service import launcher
from osaurusctl.service.manager import Facts, Manager
from osaurusd.wire.admin import DaemonStatus

_POLL_SECONDS = 0.1


def daemon_status(client: Client) -> DaemonStatus | None:
    """The daemon's own word, of whatever version; None if nobody answers."""
    try:
        return client.status(any_version=True)
    except CliError:
        return None


def is_ready(facts: Facts, status: DaemonStatus | None) -> bool:
    """Whether the service's own process serves. Another daemon's word, and a stranger's on the port, do not count."""
    return status is not None and status.serving and status.pid == facts.pid


def await_ready(manager: Manager, client: Client, timeout: float, *, not_instance: str | None = None) -> DaemonStatus:
    """Wait until the service's own process serves.

    Args:
        not_instance: the daemon that ran before, whose answers do not count.

    Raises:
        CliError: it does not in time; the message has the cause as far as it can be known.
    """
    deadline = time.monotonic() + timeout
    while True:
        # The daemon first: asking it costs much less than asking the service manager.
        status = daemon_status(client)
        serves = status is not None and status.serving and status.instance != not_instance
        if status is not None and serves and is_ready(manager.facts(), status):
            return status
        if time.monotonic() >= deadline:
            raise _not_ready(manager, manager.facts(), status, timeout)
        time.sleep(_POLL_SECONDS)


def _not_ready(manager: Manager, facts: Facts, status: DaemonStatus | None, timeout: float) -> CliError:
    message, hint = _cause(manager, facts, status)
    return CliError(f"the service is not ready after {timeout:g} s: {message}", hint=hint, code="not_ready")


def _cause(manager: Manager, facts: Facts, status: DaemonStatus | None) -> tuple[str, str]:
    look = "`osaurusctl doctor` looks closer"
    if not facts.loaded:
        return f"{manager.name} has not loaded it", look
    if facts.pid is None:
        last = f", and it ended last with {facts.last_exit}" if facts.last_exit not in (None, "0") else ""
        return f"{manager.name} has taken it, but no process runs ({facts.state}{last})", look
    if status is None:
        return _launcher_fault(manager) or f"its process (pid {facts.pid}) does not answer yet", look
    if status.pid != facts.pid:
        return f"another osaurusd (pid {status.pid}) has the home, and the service waits for its end", (
            f"end it with `kill {status.pid}`: the service takes over"
        )
    if status.faults:
        return "; ".join(status.faults), "once that is mended it goes on by itself; `osaurusctl status` shows it"
    return f"its process (pid {facts.pid}) does not serve yet", look


def _launcher_fault(manager: Manager) -> str | None:
    """Why the process that runs may be the launcher still, looking for osaurusd."""
    job = manager.recorded()
    return launcher.fault(job.launcher, job.env) if job is not None else None
