"""The service under launchd: our one job in one domain.

The sequences follow launchd's habits: `bootout` returns before the job has ended, and until then `bootstrap` fails with
the catch-all EIO; a label that was disabled stays so through every reinstallation; exit code 0 means that a definition
was taken, not that a process runs.
"""

import os
import plistlib
import shlex
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osaurusctl.errors import CliError
from osaurusctl.service import files, launchctl, plist, schema
from osaurusctl.service.job import Job, Mode
from osaurusctl.service.launchctl import EALREADY, EIO, LOADED_ALREADY, Launchctl, Printed, Target
from osaurusctl.service.manager import Facts, Step
from osaurusctl.service.run import Result, Run

DAEMONS = Path("/Library/LaunchDaemons")

_BOOTSTRAP_SECONDS = 20.0
_PAUSES = (0.1, 0.2, 0.3, 0.5)
_GONE_POLL_SECONDS = 0.1
_STOP_MARGIN_SECONDS = 10.0
_FALLBACK_STOP_SECONDS = 45.0
_SUDO_SECONDS = 300.0


class Launchd:
    """Our job in the domain that its mode asks for.

    Args:
        run: runs a command line.
        label: what launchd calls the job; the file is called the same.
        mode: chooses domain, file and whether root is needed.
        uid: whose domain.
        home: that user's home directory.
        daemons: where files of system daemons lie.
    """

    name = "launchd"

    def __init__(self, run: Run, label: str, mode: Mode, uid: int, home: Path, daemons: Path = DAEMONS) -> None:
        self.mode = mode
        domain = {Mode.LOGIN: f"gui/{uid}", Mode.HEADLESS: f"user/{uid}", Mode.SYSTEM: "system"}[mode]
        self.target = Target(domain, label)
        folder = daemons if mode is Mode.SYSTEM else home / "Library" / "LaunchAgents"
        self.file = folder / f"{label}.plist"
        self._run = run
        self._sudo = ["sudo"] if mode is Mode.SYSTEM and uid != 0 else []
        self._ctl = Launchctl(run, self._sudo)
        self._look = Launchctl(run)

    @property
    def stop_seconds(self) -> float:
        tree = self._tree() or {}
        given = tree.get("ExitTimeOut")
        return (given if isinstance(given, int) else _FALLBACK_STOP_SECONDS) + _STOP_MARGIN_SECONDS

    def refuse(self) -> None:
        if self._look.has_domain(self.target.domain):
            return
        session = self._look.manager() or "unknown"
        raise CliError(
            f"launchd has no domain {self.target.domain} here: this session ({session}) is not one at the screen, "
            "as over ssh with nobody logged in",
            hint="log in at the screen and try again; or `osaurusctl install --headless`, for sessions without a "
            "screen; or `osaurusctl install --system`, for a Mac where no one logs in",
            code="no_domain",
        )

    def content(self, job: Job) -> bytes:
        return plist.encode(plist.render(job, self.target.label))

    def recorded(self) -> Job | None:
        content = files.read(self.file)
        return None if content is None else plist.recorded(plist.decode(content), self.mode)

    def facts(self) -> Facts:
        printed = self._look.print(self.target)
        disabled = self._look.is_disabled(self.target)
        return Facts(
            manager=self.name,
            file=str(self.file),
            mode=self.mode,
            installed=self.file.exists(),
            enabled=None if disabled is None else not disabled,
            loaded=printed is not None,
            running=printed is not None and printed.pid is not None,
            state=printed.state if printed else "not loaded",
            pid=printed.pid if printed else None,
            runs=printed.number("runs") if printed else None,
            last_exit=printed.last_exit if printed else None,
            spawn_type=printed.fields.get("spawn type") if printed else None,
            drift=self._drift(printed),
        )

    def writing(self, content: bytes | None) -> Step:
        text = f"remove {self.file}" if content is None else f"write {self.file}"
        if self._sudo:
            text = f"sudo: {text} (root's, 0644)"
        return Step(text, lambda: self._write(content))

    def loading(self) -> Step:
        enable = self._ctl.shown("enable", self.target)
        bootstrap = self._ctl.shown("bootstrap", self.target.domain, shlex.quote(str(self.file)))
        return Step(f"{enable}; {bootstrap}", self._load)

    def unloading(self) -> Step:
        return Step(f"{self._ctl.shown('bootout', self.target)}, and wait until it is gone", self._unload)

    def starting(self) -> Step:
        return Step(self._ctl.shown("kickstart", self.target), self._start)

    def restarting(self) -> Step:
        kill = self._ctl.shown("kill SIGTERM", self.target)
        return Step(f"{kill}, wait until it has ended, {self._ctl.shown('kickstart', self.target)}", self._restart)

    def enabling(self) -> Step:
        return Step(self._ctl.shown("enable", self.target), lambda: self._must(self._ctl.enable(self.target), "enable"))

    def disabling(self) -> Step:
        return Step(
            self._ctl.shown("disable", self.target), lambda: self._must(self._ctl.disable(self.target), "disable")
        )

    def advice(self) -> str | None:
        if self.mode is Mode.HEADLESS:
            return "it starts once this user has a session, for example over ssh, and not at boot"
        return None

    def _tree(self) -> dict[str, Any] | None:
        """The installed property list, or None if there is none that can be read."""
        try:
            content = files.read(self.file)
            return None if content is None else plist.decode(content)
        except (CliError, OSError):
            return None

    def _write(self, content: bytes | None) -> None:
        if self._sudo:
            self._write_as_root(content)
        elif content is None:
            self.file.unlink(missing_ok=True)
        else:
            self.file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.replace(self.file, content, 0o644)

    def _write_as_root(self, content: bytes | None) -> None:
        if content is None:
            command = ["rm", "-f", str(self.file)]
            self._must(self._run([*self._sudo, *command], _SUDO_SECONDS), "rm")
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            command = ["install", "-o", "root", "-g", "wheel", "-m", "644", file.name, str(self.file)]
            self._must(self._run([*self._sudo, *command], _SUDO_SECONDS), "install")

    def _load(self) -> None:
        """Enable and bootstrap, again and again inside a deadline while launchd has an error that may pass."""
        self._must(self._ctl.enable(self.target), "enable")
        deadline = time.monotonic() + _BOOTSTRAP_SECONDS
        tries = 0
        while True:
            result = self._ctl.bootstrap(self.target.domain, str(self.file))
            if result.code == 0 or (
                result.code in (EALREADY, LOADED_ALREADY) and self._look.print(self.target) is not None
            ):
                return
            may_pass = result.code in (EIO, EALREADY, LOADED_ALREADY)
            if not may_pass or self.file_faults() or time.monotonic() >= deadline:
                raise self._refused("bootstrap", result)
            time.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1

    def _unload(self) -> None:
        patience = self.stop_seconds
        if self._look.print(self.target) is None:
            return
        result = self._ctl.bootout(self.target, patience)
        deadline = time.monotonic() + patience
        # Gone means that launchd does not know it any more, not that its state is something else than running.
        while self._look.print(self.target) is not None:
            if time.monotonic() >= deadline:
                raise CliError(
                    f"launchd has not let go of {self.target} after {patience:g} s ({result.words})",
                    hint="`osaurusctl doctor` shows its state",
                    code="stop_timeout",
                )
            time.sleep(_GONE_POLL_SECONDS)

    def _start(self) -> None:
        result = self._ctl.kickstart(self.target)
        if result.code != EALREADY:
            self._must(result, "kickstart")

    def _restart(self) -> None:
        """SIGTERM first, for `kickstart -k` need not wait for requests. It ends with 0, so launchd leaves it to us."""
        before = self._look.print(self.target)
        if before is not None and before.pid is not None:
            self._ctl.kill(self.target)
            deadline = time.monotonic() + self.stop_seconds
            while (now := self._look.print(self.target)) is not None and now.pid == before.pid:
                if time.monotonic() >= deadline:
                    self._must(self._ctl.kickstart(self.target, kill=True), "kickstart")
                    return
                time.sleep(_GONE_POLL_SECONDS)
        self._start()

    def _must(self, result: Result, verb: str) -> None:
        if result.code:
            raise self._refused(verb, result)

    def _refused(self, verb: str, result: Result) -> CliError:
        """What launchd said, and what can be found out about the cause: its own words hardly ever say."""
        causes = self._causes(result)
        message = f"launchctl {verb} failed: {result.words}"
        return CliError("\n".join([message, *causes]), hint="`osaurusctl doctor` looks closer", code="launchd_refused")

    def _causes(self, result: Result) -> list[str]:
        if result.code in (launchctl.NO_DOMAIN, launchctl.UNSUPPORTED) or not self._look.has_domain(self.target.domain):
            return [f"there is no domain {self.target.domain} in this session ({self._look.manager() or 'unknown'})"]
        found = self.file_faults()
        if self._look.print(self.target) is not None:
            found.append(f"{self.target} is loaded already, or still ending")
        if self._look.is_disabled(self.target) or result.code == launchctl.DISABLED:
            found.append("the label is disabled: System Settings > General > Login Items & Extensions may forbid it")
        if result.code == launchctl.WRONG_SESSION:
            found.append("`LimitLoadToSessionType` excludes this kind of session")
        return found or ["no cause that can be seen from here: file, domain and label are in order"]

    def file_faults(self) -> list[str]:
        """What launchd would not take about the file; empty if it is right."""
        try:
            found = self.file.lstat()
        except FileNotFoundError:
            return [f"{self.file} does not exist"]
        faults = []
        if not stat.S_ISREG(found.st_mode):
            faults.append(f"{self.file} is no regular file")
        if stat.S_IMODE(found.st_mode) & 0o022:
            faults.append(f"others may write to {self.file}: `chmod 644` it")
        if found.st_uid not in (os.geteuid(), 0):
            faults.append(f"{self.file} belongs to another user")
        tree = self._tree()
        if tree is None:
            return [*faults, f"{self.file} is no property list that can be read"]
        return [*faults, *(f"{self.file}: {problem}" for problem in schema.problems(tree, self.mode))]

    def _drift(self, printed: Printed | None) -> list[str]:
        tree = self._tree()
        if tree is None:
            return ["it is loaded, but its file is gone"] if printed and not self.file.exists() else []
        found = []
        try:
            wanted = plist.render(plist.recorded(tree, self.mode), self.target.label)
        except CliError as error:
            found.append(f"the file is not what this version writes: {str(error).splitlines()[-1]}")
        else:
            if keys := _differing(tree, wanted):
                found.append(f"the file is not what this version writes: {', '.join(keys)}")
        if printed and (names := _loaded_differs(tree, printed)):
            found.append(f"the loaded job is not what the file says: {', '.join(names)}")
        return found


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    # As bytes, for true == 1 in Python and not in a property list.
    def value(tree: Mapping[str, Any], key: str) -> bytes:
        return plistlib.dumps(tree[key]) if key in tree else b""

    return sorted(key for key in left.keys() | right.keys() if value(left, key) != value(right, key))


def _loaded_differs(tree: Mapping[str, Any], printed: Printed) -> list[str]:
    """The fields in which a loaded job differs from its file, as far as launchd shows them."""
    shown = {
        "arguments": printed.blocks.get("arguments"),
        "exit timeout": printed.fields.get("exit timeout"),
        "minimum runtime": printed.fields.get("minimum runtime"),
        "stderr path": printed.fields.get("stderr path"),
        "environment": _variables(printed),
    }
    filed = {
        "arguments": tree.get("ProgramArguments"),
        "exit timeout": str(tree.get("ExitTimeOut")),
        "minimum runtime": str(tree.get("ThrottleInterval")),
        "stderr path": tree.get("StandardErrorPath"),
        "environment": sorted(f"{name} => {value}" for name, value in tree.get("EnvironmentVariables", {}).items()),
    }
    return [name for name, value in shown.items() if value is not None and value != filed[name]]


def _variables(printed: Printed) -> list[str] | None:
    """The job's own variables; launchd adds the name of the service."""
    lines = printed.blocks.get("environment")
    return None if lines is None else sorted(line for line in lines if not line.startswith("XPC_SERVICE_NAME"))
