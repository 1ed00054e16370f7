"""Running the service managers' own programs."""

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from osaurusctl.errors import CliError


class Result(NamedTuple):
    """How a program ended, and what it said."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def words(self) -> str:
        """What it said of a failure, on one line."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return "; ".join(lines[:2]) or f"exit code {self.code}"


Run = Callable[[Sequence[str], float], Result]
"""Runs a command line for so many seconds at most."""

# English whatever the user's language: their words are compared.
_ENGLISH = {"LC_ALL": "C", "LANG": "C"}


def run(command: Sequence[str], timeout: float) -> Result:
    """Run a program to its end.

    Raises:
        CliError: it is not there, or does not end.
    """
    try:
        done = subprocess.run(
            command,
            env=os.environ | _ENGLISH,
            stdin=None if command[0] == "sudo" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise CliError(f"there is no `{command[0]}` on this machine", code="no_service_manager") from error
    except subprocess.TimeoutExpired as error:
        raise CliError(f"`{' '.join(command)}` does not end", code="service_manager_hangs") from error
    return Result(done.returncode, done.stdout, done.stderr)
