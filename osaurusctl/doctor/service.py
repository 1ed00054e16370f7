"""Checks of the service: its launcher, its file, its job."""

import subprocess
import sys
from collections.abc import Iterator

from osaurusctl.doctor.check import Check, Patient, failure, ok, warning
from osaurusctl.errors import CliError
from osaurusctl.service import launcher

_MANY_STARTS = 5

# What macOS gives the processes of apps; those that it clocks down have 20 or less.
_LEAST_PRIORITY = 31
_PS_SECONDS = 5.0


def launcher_runs(patient: Patient) -> Iterator[Check]:
    """The program that the service manager starts, started."""
    if patient.manager is None:
        return
    try:
        job = patient.manager.recorded()
    except CliError:
        # The check of the file says so.
        return
    if job is None:
        return
    if fault := launcher.fault(job.launcher, job.env):
        yield failure("launcher", fault, "`osaurusctl install`, from where osaurusd is now, writes it anew")
    elif not launcher.is_current(job.launcher):
        yield warning(
            "launcher",
            f"{job.launcher} leads to another installation than this osaurusctl is of",
            "`osaurusctl install` makes it this one",
        )
    else:
        yield ok("launcher", f"{job.launcher} runs")


def service_file(patient: Patient) -> Iterator[Check]:
    if patient.manager is None or patient.facts is None:
        yield warning("service", "osaurusd is not installed as a service", "`osaurusctl install` does it")
        return
    faults = [*patient.manager.file_faults(), *patient.facts.drift]
    if faults:
        yield failure("service file", "; ".join(faults), "`osaurusctl install` writes and loads it anew")
    else:
        yield ok("service file", f"{patient.manager.file} is valid and current")


def job_state(patient: Patient) -> Iterator[Check]:
    facts = patient.facts
    if facts is None:
        return
    last = f", last exit {facts.last_exit}" if facts.last_exit else ""
    if not facts.loaded:
        yield failure("job", f"{facts.manager} has not loaded it", "`osaurusctl start`")
    elif not facts.running:
        yield failure(
            "job", f"no process runs ({facts.state}{last})", "`osaurusctl start`, and look at the checks above"
        )
    elif facts.enabled is False:
        yield warning("job", f"runs (pid {facts.pid}), but is disabled", "`osaurusctl enable`")
    elif (facts.runs or 0) >= _MANY_STARTS and facts.last_exit not in (None, "0"):
        yield warning("job", f"runs (pid {facts.pid}), but was started {facts.runs} times{last}", "`osaurusctl logs`")
    else:
        yield ok("job", f"enabled, loaded and running (pid {facts.pid})")


def spawn_type(patient: Patient) -> Iterator[Check]:
    """The one property of a launchd job that makes models several times slower."""
    kind = patient.facts.spawn_type if patient.facts else None
    if kind is None:
        return
    if kind.startswith("interactive"):
        yield ok("spawn type", kind)
    else:
        yield failure("spawn type", f"{kind}: launchd clocks it down", "`osaurusctl install` writes the file anew")


def priority(patient: Patient) -> Iterator[Check]:
    """What macOS made of the spawn type. Models' processes inherit it, and nothing else shows it: not even `nice`."""
    pid = patient.facts.pid if patient.facts else None
    if sys.platform != "darwin" or pid is None:
        return
    ps = ["ps", "-o", "pri=", "-p", str(pid)]
    found = subprocess.run(ps, capture_output=True, text=True, timeout=_PS_SECONDS, check=False).stdout.split()
    if not found or not found[0].isdecimal():
        yield warning("priority", f"`{' '.join(ps)}` does not tell it")
    elif int(found[0]) < _LEAST_PRIORITY:
        text = f"{found[0]}, less than the {_LEAST_PRIORITY} of apps: macOS clocks it down"
        yield failure("priority", text, "`osaurusctl install` writes the file anew")
    else:
        yield ok("priority", found[0])
