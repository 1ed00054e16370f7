"""Find the service manager of this machine and the service that belongs to this environment."""

import os
import pwd
import shutil
import sys
from pathlib import Path

from osaurusctl.errors import CliError
from osaurusctl.service.job import LABEL, Mode, inherited_environment
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.manager import ServiceManager, no_manager_error, not_installed_error, run_command
from osaurusctl.service.systemd import Systemd
from osaurusd.wire import machine

MANAGER_VARIABLE = "OSAURUS_SERVICE_MANAGER"
LABEL_VARIABLE = "OSAURUS_SERVICE_LABEL"
ROOT_VARIABLE = "OSAURUS_ALLOW_ROOT"


def detect_manager() -> str | None:
    """Return `launchd`, `systemd`, or None if this machine has neither."""
    if chosen := os.environ.get(MANAGER_VARIABLE):
        return chosen if chosen in ("launchd", "systemd") else None
    if sys.platform == "darwin":
        return "launchd"
    return "systemd" if shutil.which("systemctl") and Path("/run/systemd/system").is_dir() else None


def service_label() -> str:
    return os.environ.get(LABEL_VARIABLE) or LABEL


def manager_for_mode(mode: Mode) -> ServiceManager:
    """Return this machine's service manager, bound to a service of `mode`.

    Raises:
        CliError: there is no service manager, or it does not support the mode.
    """
    match detect_manager():
        case "launchd":
            return Launchd(run_command, service_label(), mode, os.getuid(), Path.home())
        case "systemd":
            return Systemd(run_command, service_label(), mode)
        case _:
            raise no_manager_error()


def find_installed() -> ServiceManager | None:
    """Return the manager of the installed service file, regardless of its home; None if no file is installed."""
    kind = detect_manager()
    if kind is None:
        return None
    managers = [manager_for_mode(mode) for mode in Mode if kind == "launchd" or mode is Mode.LOGIN]
    installed = [manager for manager in managers if manager.file.exists()]
    # The files of login and headless services have the same path; only their content differs.
    return next(
        (
            manager
            for manager in installed
            if manager.mode is Mode.SYSTEM or _is_headless_file(manager) == (manager.mode is Mode.HEADLESS)
        ),
        None,
    )


def find_service() -> ServiceManager | None:
    """Return the manager of the installed service, or of one that is loaded although its file was deleted."""
    if (installed := find_installed()) is not None:
        return installed
    if detect_manager() is None:
        return None
    manager = manager_for_mode(Mode.LOGIN)
    return manager if manager.status().loaded else None


def find_own_service() -> ServiceManager | None:
    """Return the manager of the installed service if it uses this environment's home."""
    installed = find_installed()
    return installed if installed is not None and uses_this_home(installed) else None


def find_own_or_loaded_service() -> ServiceManager | None:
    """Return the result of `find_service` if that service uses this environment's home."""
    manager = find_service()
    return manager if manager is not None and uses_this_home(manager) else None


def require_service() -> ServiceManager:
    """Return the manager of the service.

    Raises:
        CliError: no service is installed, or it uses another home.
    """
    if detect_manager() is None:
        raise no_manager_error()
    if (manager := find_service()) is None:
        raise not_installed_error()
    if not uses_this_home(manager):
        raise other_home_error(manager)
    return manager


def other_home_error(manager: ServiceManager) -> CliError:
    return CliError(
        f"the service {manager.file} uses another home",
        hint=f"set OSAURUS_HOME to the value at its installation, or {LABEL_VARIABLE} to manage a second service",
        code="other_home",
    )


def uses_this_home(manager: ServiceManager) -> bool:
    """Whether the service uses this environment's home; also true if its file cannot be parsed."""
    try:
        job = manager.installed_job()
    except CliError:
        return True
    return job is None or job.env.get("OSAURUS_HOME") == inherited_environment().get("OSAURUS_HOME")


def reject_root() -> None:
    """Raise an error for root: a service that root installs does not belong to a user who logs in."""
    if os.geteuid() == 0 and not os.environ.get(ROOT_VARIABLE):
        raise CliError(
            "root can neither install nor remove the service; it belongs to a user",
            hint="run this as that user without sudo; osaurusctl calls sudo where necessary",
            code="root",
        )


def reject_unsupported_machine() -> None:
    """Raise an error if osaurusd does not run on this machine."""
    try:
        machine.check()
    except machine.UnsupportedMachine as error:
        raise CliError(str(error), code="unsupported_machine") from error


def reject_inside_service() -> None:
    """Raise an error inside the service: stopping the service would kill this command halfway."""
    inside = os.environ.get("XPC_SERVICE_NAME") == service_label()
    if inside or os.environ.get("OSAURUS_SUPERVISED") in ("launchd", "systemd"):
        raise CliError(
            "this command runs inside the service and would be killed with it",
            hint="run it from a terminal",
            code="inside_service",
        )


def user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _is_headless_file(manager: ServiceManager) -> bool:
    return manager.name == "launchd" and b"LimitLoadToSessionType" in manager.file.read_bytes()
