"""What every service manager can do for us, and which one this machine has."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from osaurusctl.errors import CliError
from osaurusctl.service.job import Job, Mode


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the service manager knows of us. Each is a fact of its own: none follows from another.

    `drift` says where file, loaded job and what this version would write differ. `runs` counts starts since it was
    loaded. `ready` is not the manager's to know: only the daemon tells.
    """

    manager: str
    file: str
    mode: Mode
    installed: bool
    enabled: bool | None
    loaded: bool
    running: bool
    state: str
    pid: int | None = None
    runs: int | None = None
    last_exit: str | None = None
    spawn_type: str | None = None
    drift: list[str] = []


@dataclass(frozen=True)
class Step:
    """Something that is to be done, and what it is called; nothing happens until `act` is called."""

    text: str
    act: Callable[[], None]


class Manager(Protocol):
    """A service manager, bound to our one service. What fails is a `CliError` that names cause and cure."""

    name: str
    mode: Mode
    file: Path

    def refuse(self) -> None:
        """Raise if this session cannot have the service, saying what can be done."""

    def content(self, job: Job) -> bytes:
        """The service file for a job, checked."""

    def recorded(self) -> Job | None:
        """The job that is installed, or None; a file that cannot be read is an error."""

    def facts(self) -> Facts: ...

    def file_faults(self) -> list[str]:
        """What is wrong with the installed file; empty if it is right."""

    def writing(self, content: bytes | None) -> Step:
        """Put the service file there, or take it away."""

    def loading(self) -> Step:
        """Have the service start now and from now on."""

    def unloading(self) -> Step:
        """End the service and wait until it is really gone; nothing to do is no error."""

    def starting(self) -> Step:
        """Start a service that is loaded, if it does not run."""

    def restarting(self) -> Step:
        """Let running requests finish, end the process and start it anew."""

    def enabling(self) -> Step: ...

    def disabling(self) -> Step:
        """Have it not start by itself any more; what runs goes on."""

    def advice(self) -> str | None:
        """What the user should know after an installation, if anything."""


MANAGER_VARIABLE = "OSAURUS_SERVICE_MANAGER"


def kind() -> str | None:
    """`launchd`, `systemd`, or None if this machine has neither."""
    if chosen := os.environ.get(MANAGER_VARIABLE):
        return chosen if chosen in ("launchd", "systemd") else None
    if sys.platform == "darwin":
        return "launchd"
    return "systemd" if shutil.which("systemctl") and Path("/run/systemd/system").is_dir() else None


def none_here() -> CliError:
    return CliError(
        "this machine has neither launchd nor systemd, or this session cannot see it",
        hint="`osaurusctl up` starts osaurusd without one",
        code="no_service_manager",
    )


def not_installed() -> CliError:
    return CliError("osaurusd is not installed as a service", hint="`osaurusctl install` does it", code="not_installed")
