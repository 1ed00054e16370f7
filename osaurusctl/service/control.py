"""Start, stop and restart the installed service, and wait until it is ready."""

import time

from osaurusctl.client import Client
from osaurusctl.errors import CliError
from osaurusctl.service import launcher
from osaurusctl.service.manager import ServiceManager, ServiceStatus
from osaurusd.wire.admin import DaemonStatus

_POLL_SECONDS = 0.1


def start(manager: ServiceManager, client: Client, timeout: float) -> tuple[DaemonStatus, bool]:
    """Start the service and wait until it is ready; return the status and whether it had to be started.

    A disabled service stays disabled: it runs now, but does not start at the next login.
    """
    status = manager.status()
    if not status.loaded:
        manager.check_available()
        _load(manager, status)
    elif not status.running:
        manager.start_step().run()
    return wait_until_ready(manager, client, timeout), not status.running


def stop(manager: ServiceManager) -> int | None:
    """Stop the service until it is started or the user logs in again; return the pid of the process, if it ran."""
    pid = manager.status().pid
    manager.unload_step().run()
    return pid


def restart(manager: ServiceManager, client: Client, timeout: float) -> DaemonStatus:
    """Let running requests finish, restart the process and wait until the new one is ready."""
    before = read_daemon_status(client)
    status = manager.status()
    if not status.running or status.drift:
        # A changed file takes effect only when the service is loaded again. So does a job that never started.
        manager.unload_step().run()
        _load(manager, status)
    else:
        manager.restart_step().run()
    return wait_until_ready(manager, client, timeout, previous_instance=before.instance if before else None)


def disable(manager: ServiceManager) -> int | None:
    """Stop the service permanently, across logins; return the pid of the process, if it ran."""
    manager.disable_step().run()
    return stop(manager)


def read_daemon_status(client: Client) -> DaemonStatus | None:
    """Return the status of a daemon of any version, or None if it does not respond."""
    try:
        return client.status(any_version=True)
    except CliError:
        return None


def is_ready(service: ServiceStatus, daemon: DaemonStatus | None) -> bool:
    """Whether the service's own process serves requests. Another daemon with the same home does not count."""
    return daemon is not None and daemon.serving and daemon.pid == service.pid


def wait_until_ready(
    manager: ServiceManager, client: Client, timeout: float, *, previous_instance: str | None = None
) -> DaemonStatus:
    """Wait until the service's own process serves requests.

    Args:
        previous_instance: the daemon that ran before; it does not count as ready.

    Raises:
        CliError: the service is not ready in time; the message has the cause as far as it is known.
    """
    deadline = time.monotonic() + timeout
    while True:
        # Query the daemon first: that is much cheaper than querying the service manager.
        daemon = read_daemon_status(client)
        is_new = daemon is not None and daemon.serving and daemon.instance != previous_instance
        if daemon is not None and is_new and is_ready(manager.status(), daemon):
            return daemon
        if time.monotonic() >= deadline:
            cause, hint = _find_cause(manager, manager.status(), daemon)
            raise CliError(f"the service is not ready after {timeout:g} s: {cause}", hint=hint, code="not_ready")
        time.sleep(_POLL_SECONDS)


def _load(manager: ServiceManager, before: ServiceStatus) -> None:
    """Load the service. Loading enables it, so disable it again if it was disabled."""
    manager.load_step().run()
    if before.enabled is False:
        manager.disable_step().run()


def _find_cause(manager: ServiceManager, service: ServiceStatus, daemon: DaemonStatus | None) -> tuple[str, str]:
    """Return why the service is not ready, and a hint."""
    hint = 'run "osaurusctl doctor" for details'
    if not service.loaded:
        return f"{manager.name} has not loaded the service", hint
    if service.pid is None:
        failed = service.last_exit not in (None, "0")
        last_exit = f", last exit {service.last_exit}" if failed else ""
        return f"{manager.name} accepted the service, but no process is running ({service.state}{last_exit})", hint
    if daemon is None:
        return _launcher_problem(manager) or f"its process (pid {service.pid}) does not respond yet", hint
    if daemon.pid != service.pid:
        return (
            f"another osaurusd (pid {daemon.pid}) uses the same home, and the service waits until that exits",
            f'run "kill {daemon.pid}" to stop it; the service then takes over',
        )
    if daemon.faults:
        return "; ".join(daemon.faults), "the service recovers automatically once this is fixed"
    return f"its process (pid {service.pid}) does not serve requests yet", hint


def _launcher_problem(manager: ServiceManager) -> str | None:
    """Return why the launcher does not start osaurusd: the process may still be the launcher."""
    job = manager.installed_job()
    return launcher.check(job.launcher, job.env) if job is not None else None
