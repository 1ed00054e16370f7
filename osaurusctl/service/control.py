"""Starting, stopping and restarting the installed service, and saying what happened."""

from osaurusctl.client import Client
from osaurusctl.service import ready
from osaurusctl.service.manager import Manager
from osaurusd.wire.admin import DaemonStatus


def start(manager: Manager, client: Client, timeout: float) -> tuple[DaemonStatus, bool]:
    """Have the service run and serve; returns whether it had to be started.

    One that is disabled stays so: it runs now, and not from the next login on.
    """
    facts = manager.facts()
    if not facts.loaded:
        manager.refuse()
        manager.loading().act()
        if facts.enabled is False:
            manager.disabling().act()
    elif not facts.running:
        manager.starting().act()
    return ready.await_ready(manager, client, timeout), not facts.running


def stop(manager: Manager) -> int | None:
    """End the service until it is started or the user logs in again; returns the pid that ended, None if none ran."""
    facts = manager.facts()
    manager.unloading().act()
    return facts.pid


def restart(manager: Manager, client: Client, timeout: float) -> DaemonStatus:
    """End the process when its requests are done, and wait until its successor serves."""
    before = ready.daemon_status(client)
    facts = manager.facts()
    if not facts.running or facts.drift:
        # Only loading it anew helps where what is loaded is not what the file says, or was taken and never started.
        manager.unloading().act()
        manager.loading().act()
        if facts.enabled is False:
            manager.disabling().act()
    else:
        manager.restarting().act()
    return ready.await_ready(manager, client, timeout, not_instance=before.instance if before else None)


def disable(manager: Manager) -> int | None:
    """Stop the service and have it stay so through logins; returns the pid that ended."""
    manager.disabling().act()
    return stop(manager)
