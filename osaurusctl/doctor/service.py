"""Checks of the service: launcher, service file, job, priority."""

import subprocess
import sys
from collections.abc import Iterator

from osaurusctl.doctor.check import Check, Context, failure, ok, warning
from osaurusctl.errors import CliError
from osaurusctl.service import launcher

_REINSTALL = 'run "osaurusctl install"'
_RESTART_WARNING_COUNT = 5

# The priority that macOS gives to processes of apps. Throttled processes have 20 or less.
_MIN_PRIORITY = 31
_PS_TIMEOUT_SECONDS = 5.0


def check_launcher(context: Context) -> Iterator[Check]:
    """Run the program that the service manager runs."""
    if context.manager is None:
        return
    try:
        job = context.manager.installed_job()
    except CliError:
        # `check_service_file` reports this.
        return
    if job is None:
        return
    if problem := launcher.check(job.launcher, job.env):
        yield failure("launcher", problem, f"{_REINSTALL} from the current installation of osaurusd")
    elif not launcher.is_current(job.launcher):
        detail = f"{job.launcher} starts a different installation of osaurusd than the one of this osaurusctl"
        yield warning("launcher", detail, f"{_REINSTALL} to use this installation")
    else:
        yield ok("launcher", f"{job.launcher} works")


def check_service_file(context: Context) -> Iterator[Check]:
    if context.manager is None or context.service is None:
        yield warning("service", "osaurusd is not installed as a service", _REINSTALL)
        return
    problems = [*context.manager.file_problems(), *context.service.drift]
    if problems:
        yield failure("service file", "; ".join(problems), f"{_REINSTALL} to write and load it again")
    else:
        yield ok("service file", f"{context.manager.file} is valid and up to date")


def check_job(context: Context) -> Iterator[Check]:
    service = context.service
    if service is None:
        return
    last_exit = f", last exit {service.last_exit}" if service.last_exit else ""
    crashed = (service.runs or 0) >= _RESTART_WARNING_COUNT and service.last_exit not in (None, "0")
    start = 'run "osaurusctl start"'
    if not service.loaded:
        yield failure("job", f"{service.manager} has not loaded the service", start)
    elif not service.running and service.runs == 0:
        yield failure("job", f"{service.manager} has loaded the job, but never started it ({service.state})", start)
    elif not service.running:
        detail = f"no process is running ({service.state}{last_exit})"
        yield failure("job", detail, f"{start} after fixing the problems above")
    elif service.enabled is False:
        yield warning("job", f"running (pid {service.pid}), but disabled", 'run "osaurusctl enable"')
    elif crashed:
        detail = f"running (pid {service.pid}), but started {service.runs} times{last_exit}"
        yield warning("job", detail, 'run "osaurusctl logs"')
    else:
        yield ok("job", f"enabled, loaded and running (pid {service.pid})")


def check_spawn_type(context: Context) -> Iterator[Check]:
    """Check the property of a launchd job that can make models several times slower."""
    spawn_type = context.service.spawn_type if context.service else None
    if spawn_type is None:
        return
    if spawn_type.startswith("interactive"):
        yield ok("spawn type", spawn_type)
    else:
        yield failure("spawn type", f"{spawn_type}; launchd throttles the job", f"{_REINSTALL} to write the file again")


def check_priority(context: Context) -> Iterator[Check]:
    """Check the priority that macOS derives from the spawn type, and that workers inherit. Only `ps` shows it."""
    pid = context.service.pid if context.service else None
    if sys.platform != "darwin" or pid is None:
        return
    command = ["ps", "-o", "pri=", "-p", str(pid)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=_PS_TIMEOUT_SECONDS, check=False)
    fields = completed.stdout.split()
    if not fields or not fields[0].isdecimal():
        yield warning("priority", f'unknown; "{" ".join(command)}" does not print it')
    elif int(fields[0]) < _MIN_PRIORITY:
        detail = f"{fields[0]}, below the {_MIN_PRIORITY} of apps; macOS throttles the job"
        yield failure("priority", detail, f"{_REINSTALL} to write the file again")
    else:
        yield ok("priority", fields[0])
