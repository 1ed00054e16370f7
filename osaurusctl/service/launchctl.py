"""A wrapper of launchctl: its subcommands, its exit codes, and a parser of `launchctl print`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from osaurusctl.service.manager import Result, RunCommand

# Exit codes up to 106 are errno values, higher ones are launchd's own; `launchctl error N` describes them.
ESRCH, EIO, EALREADY = 3, 5, 37
NO_DOMAIN, NO_SERVICE, DISABLED, UNSUPPORTED, ALREADY_LOADED, WRONG_SESSION = 112, 113, 119, 125, 130, 134

_TIMEOUT_SECONDS = 30.0


class Target(NamedTuple):
    """A job in a domain. The domain is `gui/UID`, `user/UID` or `system`."""

    domain: str
    label: str

    def __str__(self) -> str:
        return f"{self.domain}/{self.label}"


@dataclass(frozen=True)
class JobInfo:
    """A loaded job as `launchctl print` shows it; nested blocks are kept apart from the job's own fields."""

    fields: dict[str, str]
    blocks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return self.fields.get("state", "unknown")

    @property
    def pid(self) -> int | None:
        pid = self.number("pid")
        return pid if pid and pid > 0 else None

    @property
    def never_ran(self) -> bool:
        """Whether launchd has not started a process since it loaded the job."""
        return self.pid is None and not self.number("runs") and self.last_exit is None

    @property
    def last_exit(self) -> str | None:
        """The last exit code or signal as launchd prints it; None if the job has never exited."""
        if signal := self.fields.get("last terminating signal"):
            return signal
        code = self.fields.get("last exit code")
        return None if code in (None, "(never exited)") else code

    def number(self, name: str) -> int | None:
        value = self.fields.get(name, "")
        return int(value) if value.lstrip("-").isdecimal() else None


class Launchctl:
    """One method for each subcommand; most return the result of launchctl unchanged.

    Args:
        run: runs a command line.
        prefix: arguments before `launchctl`, such as `sudo`.
    """

    def __init__(self, run: RunCommand, prefix: Sequence[str] = ()) -> None:
        self._run = run
        self._prefix = list(prefix)

    def bootstrap(self, domain: str, plist: str) -> Result:
        return self._call("bootstrap", domain, plist)

    def bootout(self, target: Target, timeout: float) -> Result:
        """Unload a job. Recent versions of macOS return at once; older ones wait until the job has exited."""
        return self._call("bootout", str(target), timeout=timeout)

    def enable(self, target: Target) -> Result:
        return self._call("enable", str(target))

    def disable(self, target: Target) -> Result:
        return self._call("disable", str(target))

    def kickstart(self, target: Target, *, kill: bool = False) -> Result:
        return self._call("kickstart", *(["-k"] if kill else []), str(target))

    def kill(self, target: Target, signal: str = "SIGTERM") -> Result:
        return self._call("kill", signal, str(target))

    def print(self, target: Target) -> JobInfo | None:
        """Return the loaded job, or None if it is not loaded."""
        result = self._call("print", str(target))
        return parse_job(result.out) if result.code == 0 else None

    def has_domain(self, domain: str) -> bool:
        return self._call("print", domain).code == 0

    def is_disabled(self, target: Target) -> bool | None:
        """Whether launchd does not start the job at login; None if launchctl does not report it."""
        result = self._call("print-disabled", target.domain)
        if result.code:
            return None
        # macOS 13 and later print `=> disabled`, earlier versions `=> true`.
        match = re.search(rf'^\s*"{re.escape(target.label)}" => (\w+)', result.out, re.MULTILINE)
        return match is not None and match[1] in ("disabled", "true")

    def session(self) -> str:
        """Return the kind of session: Aqua at the screen, Background over ssh."""
        return self._call("managername").out.strip() or "unknown"

    def describe(self, *arguments: object) -> str:
        """Format a command for the user."""
        return " ".join([*self._prefix, "launchctl", *map(str, arguments)])

    def _call(self, *arguments: str, timeout: float = _TIMEOUT_SECONDS) -> Result:
        return self._run([*self._prefix, "launchctl", *arguments], timeout)


def parse_job(text: str) -> JobInfo:
    """Parse the output of `launchctl print`. Its format is not stable, so every field is optional.

    Only lines indented by exactly one tab belong to the job itself; deeper ones repeat field names for other objects.
    """
    fields: dict[str, str] = {}
    blocks: dict[str, list[str]] = {}
    block: list[str] | None = None
    for line in text.splitlines():
        if line == "\t}":
            block = None
        elif block is not None:
            block.append(line.removeprefix("\t\t"))
        elif line.startswith("\t") and not line.startswith("\t\t"):
            name, equals, value = line[1:].partition(" = ")
            if equals and value == "{":
                block = blocks.setdefault(name, [])
            elif equals:
                fields.setdefault(name, value)
    return JobInfo(fields, blocks)
