"""The interface to service managers, and how to run their command-line programs."""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from osaurusctl.errors import CliError
from osaurusctl.service.job import Job, Mode

# Messages are matched, so they must be in English regardless of the user's language.
_ENGLISH = {"LC_ALL": "C", "LANG": "C"}


class Result(NamedTuple):
    """Exit code and output of a program."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def message(self) -> str:
        """The program's error message on one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return "; ".join(lines[:2]) or f"exit code {self.code}"


RunCommand = Callable[[Sequence[str], float], Result]
"""Runs a command line with a timeout in seconds."""


def run_command(command: Sequence[str], timeout: float) -> Result:
    """Run a program until it exits.

    Raises:
        CliError: the program does not exist, or does not exit in time.
    """
    try:
        completed = subprocess.run(
            command,
            env=os.environ | _ENGLISH,
            # sudo may prompt for a password.
            stdin=None if command[0] == "sudo" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CliError(f'the program "{command[0]}" is not installed', code="no_service_manager") from error
    except subprocess.TimeoutExpired as error:
        message = f'"{" ".join(command)}" did not exit within {timeout:g} s'
        raise CliError(message, code="service_manager_hangs") from error
    return Result(completed.returncode, completed.stdout, completed.stderr)


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the service manager reports. The fields are independent of each other.

    `drift` lists differences between the service file, the loaded job and what this version would write. `runs` counts
    starts since the service was loaded. Whether the service is ready is not included: only the daemon reports that.
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
    """A step of an installation: a description, and the action, which runs only when it is called."""

    text: str
    run: Callable[[], None]


class ServiceManager(Protocol):
    """A service manager, bound to the osaurusd service. Failures are raised as `CliError`."""

    name: str
    mode: Mode
    file: Path

    def check_available(self) -> None:
        """Raise an error if this session cannot have the service."""

    def render(self, job: Job) -> bytes:
        """Return the content of the service file for a job."""

    def installed_job(self) -> Job | None:
        """Return the job of the installed service file, or None; raise an error if the file cannot be parsed."""

    def status(self) -> ServiceStatus: ...

    def file_problems(self) -> list[str]:
        """Return why the service manager would reject the installed file; empty if it is valid."""

    def write_step(self, content: bytes | None) -> Step:
        """Write the service file, or remove it if `content` is None."""

    def load_step(self) -> Step:
        """Enable the service, load it and start it."""

    def unload_step(self) -> Step:
        """Stop the service and wait until it is unloaded. Does nothing if it is not loaded."""

    def start_step(self) -> Step:
        """Start a loaded service if it does not run."""

    def restart_step(self) -> Step:
        """Let running requests finish, stop the process and start it again."""

    def enable_step(self) -> Step: ...

    def disable_step(self) -> Step:
        """Stop starting the service automatically. A running process keeps running."""

    def install_note(self) -> str | None:
        """Return what the user should know after an installation, if anything."""


def no_manager_error() -> CliError:
    return CliError(
        "neither launchd nor systemd is available on this machine or in this session",
        hint='run "osaurusctl up" to start osaurusd without a service manager',
        code="no_service_manager",
    )


def not_installed_error() -> CliError:
    return CliError(
        "osaurusd is not installed as a service",
        hint='run "osaurusctl install" to install it',
        code="not_installed",
    )
