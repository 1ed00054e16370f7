"""launchctl's verbs, its exit codes, and what can be read out of what it prints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from osaurusctl.service.run import Result, Run

# errno up to 106, launchd's own above (`launchctl error N` names them).
ESRCH, EIO, EALREADY = 3, 5, 37
NO_DOMAIN, NO_SERVICE, DISABLED, UNSUPPORTED, LOADED_ALREADY, WRONG_SESSION = 112, 113, 119, 125, 130, 134

_SECONDS = 30.0


class Target(NamedTuple):
    """A job in a domain: `gui/UID`, `user/UID` or `system`."""

    domain: str
    label: str

    def __str__(self) -> str:
        return f"{self.domain}/{self.label}"


@dataclass(frozen=True)
class Printed:
    """A loaded job as `launchctl print` shows it: its own fields, without those of what it contains."""

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
    def last_exit(self) -> str | None:
        """How it ended last, in launchd's words; None if it never has."""
        if signal := self.fields.get("last terminating signal"):
            return signal
        code = self.fields.get("last exit code")
        return None if code in (None, "(never exited)") else code

    def number(self, name: str) -> int | None:
        value = self.fields.get(name, "")
        return int(value) if value.lstrip("-").isdecimal() else None


class Launchctl:
    """One method a verb; each returns launchctl's result as it is.

    Args:
        run: runs a command line.
        prefix: words before `launchctl`, such as `sudo`.
    """

    def __init__(self, run: Run, prefix: Sequence[str] = ()) -> None:
        self._run = run
        self._prefix = list(prefix)

    def bootstrap(self, domain: str, plist: str) -> Result:
        return self._call("bootstrap", domain, plist)

    def bootout(self, target: Target, seconds: float) -> Result:
        """Returns at once on new systems; old ones wait until the job has ended, for which `seconds` is the limit."""
        return self._call("bootout", str(target), seconds=seconds)

    def enable(self, target: Target) -> Result:
        return self._call("enable", str(target))

    def disable(self, target: Target) -> Result:
        return self._call("disable", str(target))

    def kickstart(self, target: Target, *, kill: bool = False) -> Result:
        return self._call("kickstart", *(["-k"] if kill else []), str(target))

    def kill(self, target: Target, signal: str = "SIGTERM") -> Result:
        return self._call("kill", signal, str(target))

    def print(self, target: Target) -> Printed | None:
        """The loaded job, or None if there is none."""
        result = self._call("print", str(target))
        return parse(result.out) if result.code == 0 else None

    def has_domain(self, domain: str) -> bool:
        return self._call("print", domain).code == 0

    def is_disabled(self, target: Target) -> bool | None:
        """Whether launchd will not start the job at login; None if it does not tell."""
        result = self._call("print-disabled", target.domain)
        if result.code:
            return None
        # `=> disabled` since macOS 13, `=> true` before.
        found = re.search(rf'^\s*"{re.escape(target.label)}" => (\w+)', result.out, re.MULTILINE)
        return found is not None and found[1] in ("disabled", "true")

    def manager(self) -> str:
        """The kind of session this runs in: Aqua at the screen, Background over ssh."""
        return self._call("managername").out.strip()

    def shown(self, *words: object) -> str:
        """A command as it is printed for people."""
        return " ".join([*self._prefix, "launchctl", *map(str, words)])

    def _call(self, *words: str, seconds: float = _SECONDS) -> Result:
        return self._run([*self._prefix, "launchctl", *words], seconds)


def parse(text: str) -> Printed:
    """Read what `launchctl print` says of a job. It is no stable format: what is missing is missing.

    Only lines with exactly one tab are the job's own; deeper ones repeat the same names for other things.
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
    return Printed(fields, blocks)
