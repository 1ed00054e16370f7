"""The service under launchd: one job in one domain.

The sequences of commands follow from launchd's behavior: `bootout` returns before the job has exited, and until then
`bootstrap` fails with the generic EIO; a disabled label stays disabled when the job is installed again; exit code 0
means that launchd accepted a definition, not that a process runs.
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
from osaurusctl.service import launchctl, plist
from osaurusctl.service.job import Job, Mode
from osaurusctl.service.launchctl import ALREADY_LOADED, EALREADY, EIO, JobInfo, Launchctl, Target
from osaurusctl.service.manager import Result, RunCommand, ServiceStatus, Step
from osaurusd.wire.files import read_file, replace_file

SYSTEM_DIRECTORY = Path("/Library/LaunchDaemons")

_BOOTSTRAP_TIMEOUT_SECONDS = 20.0
_BOOTSTRAP_RETRY_SECONDS = (0.1, 0.2, 0.3, 0.5)
_POLL_SECONDS = 0.1
_STOP_MARGIN_SECONDS = 10.0
_DEFAULT_EXIT_TIMEOUT_SECONDS = 45.0
_SUDO_TIMEOUT_SECONDS = 300.0

# How long launchd may take to start the process of a job that it has loaded. macOS 26 sometimes loads a job, reports
# success, and never starts it: `pended nondemand spawn = speculative`.
_SPAWN_SECONDS = 2.0


class Launchd:
    """The osaurusd job in the domain of its mode.

    Args:
        run: runs a command line.
        label: launchd's name of the job, and the name of the property list.
        mode: determines the domain, the location of the file, and whether root is required.
        uid: the user whose domain it is.
        home: that user's home directory.
        system_directory: where property lists of system daemons are.
    """

    name = "launchd"

    def __init__(
        self,
        run: RunCommand,
        label: str,
        mode: Mode,
        uid: int,
        home: Path,
        system_directory: Path = SYSTEM_DIRECTORY,
    ) -> None:
        self.mode = mode
        domain = {Mode.LOGIN: f"gui/{uid}", Mode.HEADLESS: f"user/{uid}", Mode.SYSTEM: "system"}[mode]
        self.target = Target(domain, label)
        directory = system_directory if mode is Mode.SYSTEM else home / "Library" / "LaunchAgents"
        self.file = directory / f"{label}.plist"
        self._run = run
        self._sudo = ["sudo"] if mode is Mode.SYSTEM and uid != 0 else []
        self._launchctl = Launchctl(run, self._sudo)
        self._query = Launchctl(run)

    @property
    def stop_timeout(self) -> float:
        """Seconds until launchd has killed a job that does not exit, and a margin."""
        exit_timeout = (self._read_plist() or {}).get("ExitTimeOut")
        seconds = exit_timeout if isinstance(exit_timeout, int) else _DEFAULT_EXIT_TIMEOUT_SECONDS
        return seconds + _STOP_MARGIN_SECONDS

    def check_available(self) -> None:
        if self._query.has_domain(self.target.domain):
            return
        raise CliError(
            f"launchd has no domain {self.target.domain} in this session ({self._query.session()}): "
            "the user is not logged in at the screen",
            hint='log in at the screen and try again, or run "osaurusctl install --headless" for non-GUI '
            'sessions, or "osaurusctl install --system" to start at boot',
            code="no_domain",
        )

    def render(self, job: Job) -> bytes:
        return plist.encode(plist.render(job, self.target.label))

    def installed_job(self) -> Job | None:
        content = read_file(self.file)
        return None if content is None else plist.parse_job(plist.decode(content), self.mode)

    def status(self) -> ServiceStatus:
        job = self._query.print(self.target)
        disabled = self._query.is_disabled(self.target)
        return ServiceStatus(
            manager=self.name,
            file=str(self.file),
            mode=self.mode,
            installed=self.file.exists(),
            enabled=None if disabled is None else not disabled,
            loaded=job is not None,
            running=job is not None and job.pid is not None,
            state=job.state if job else "not loaded",
            pid=job.pid if job else None,
            runs=job.number("runs") if job else None,
            last_exit=job.last_exit if job else None,
            spawn_type=job.fields.get("spawn type") if job else None,
            drift=self._drift(job),
        )

    def write_step(self, content: bytes | None) -> Step:
        text = f"remove {self.file}" if content is None else f"write {self.file}"
        if self._sudo:
            text = f"sudo: {text} (owner root, mode 0644)"
        return Step(text, lambda: self._write(content))

    def load_step(self) -> Step:
        enable = self._launchctl.describe("enable", self.target)
        bootstrap = self._launchctl.describe("bootstrap", self.target.domain, shlex.quote(str(self.file)))
        return Step(f"{enable}; {bootstrap}", self._load)

    def unload_step(self) -> Step:
        return Step(f"{self._launchctl.describe('bootout', self.target)}; wait until it is unloaded", self._unload)

    def start_step(self) -> Step:
        return Step(self._launchctl.describe("kickstart", self.target), self._start)

    def restart_step(self) -> Step:
        kill = self._launchctl.describe("kill SIGTERM", self.target)
        kickstart = self._launchctl.describe("kickstart", self.target)
        return Step(f"{kill}; wait until it has exited; {kickstart}", self._restart)

    def enable_step(self) -> Step:
        text = self._launchctl.describe("enable", self.target)
        return Step(text, lambda: self._check("enable", self._launchctl.enable(self.target)))

    def disable_step(self) -> Step:
        text = self._launchctl.describe("disable", self.target)
        return Step(text, lambda: self._check("disable", self._launchctl.disable(self.target)))

    def install_note(self) -> str | None:
        if self.mode is Mode.HEADLESS:
            return "the service starts with the user's first session, such as an ssh login, not at boot"
        return None

    def file_problems(self) -> list[str]:
        try:
            info = self.file.lstat()
        except FileNotFoundError:
            return [f"{self.file} does not exist"]
        problems = []
        if not stat.S_ISREG(info.st_mode):
            problems.append(f"{self.file} is not a regular file")
        if stat.S_IMODE(info.st_mode) & 0o022:
            problems.append(f'{self.file} is writable by other users; run "chmod 644" on it')
        if info.st_uid not in (os.geteuid(), 0):
            problems.append(f"{self.file} belongs to another user")
        if self._read_plist() is None:
            problems.append(f"{self.file} is not a valid property list")
        return problems

    def _read_plist(self) -> dict[str, Any] | None:
        """Return the installed property list, or None if it does not exist or cannot be parsed."""
        try:
            content = read_file(self.file)
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
            replace_file(self.file, content, 0o644)

    def _write_as_root(self, content: bytes | None) -> None:
        if content is None:
            self._check("rm", self._run([*self._sudo, "rm", "-f", str(self.file)], _SUDO_TIMEOUT_SECONDS))
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            command = ["install", "-o", "root", "-g", "wheel", "-m", "644", file.name, str(self.file)]
            self._check("install", self._run([*self._sudo, *command], _SUDO_TIMEOUT_SECONDS))

    def _load(self) -> None:
        """Load the job and make launchd start it."""
        self._check("enable", self._launchctl.enable(self.target))
        self._bootstrap()
        deadline = time.monotonic() + _SPAWN_SECONDS
        while (job := self._query.print(self.target)) is not None and job.never_ran:
            if time.monotonic() >= deadline:
                # Without -k, which would kill a process that has started in the meantime.
                self._start()
                return
            time.sleep(_POLL_SECONDS)

    def _bootstrap(self) -> None:
        """Bootstrap the job; retry while launchd reports an error that may be temporary."""
        deadline = time.monotonic() + _BOOTSTRAP_TIMEOUT_SECONDS
        attempt = 0
        while True:
            result = self._launchctl.bootstrap(self.target.domain, str(self.file))
            if result.code == 0 or (
                result.code in (EALREADY, ALREADY_LOADED) and self._query.print(self.target) is not None
            ):
                return
            may_be_temporary = result.code in (EIO, EALREADY, ALREADY_LOADED)
            if not may_be_temporary or self.file_problems() or time.monotonic() >= deadline:
                raise self._launchctl_error("bootstrap", result)
            time.sleep(_BOOTSTRAP_RETRY_SECONDS[min(attempt, len(_BOOTSTRAP_RETRY_SECONDS) - 1)])
            attempt += 1

    def _unload(self) -> None:
        timeout = self.stop_timeout
        if self._query.print(self.target) is None:
            return
        result = self._launchctl.bootout(self.target, timeout)
        deadline = time.monotonic() + timeout
        # The job is unloaded when launchctl no longer finds it; a state other than "running" is not enough.
        while self._query.print(self.target) is not None:
            if time.monotonic() >= deadline:
                raise CliError(
                    f"launchd has not unloaded {self.target} after {timeout:g} s ({result.message})",
                    hint='run "osaurusctl doctor" for details',
                    code="stop_timeout",
                )
            time.sleep(_POLL_SECONDS)

    def _start(self) -> None:
        result = self._launchctl.kickstart(self.target)
        if result.code != EALREADY:
            self._check("kickstart", result)

    def _restart(self) -> None:
        """Send SIGTERM, because `kickstart -k` does not wait for requests; launchd does not restart after exit 0."""
        before = self._query.print(self.target)
        if before is not None and before.pid is not None:
            self._launchctl.kill(self.target)
            deadline = time.monotonic() + self.stop_timeout
            while (job := self._query.print(self.target)) is not None and job.pid == before.pid:
                if time.monotonic() >= deadline:
                    self._check("kickstart", self._launchctl.kickstart(self.target, kill=True))
                    return
                time.sleep(_POLL_SECONDS)
        self._start()

    def _check(self, verb: str, result: Result) -> None:
        if result.code:
            raise self._launchctl_error(verb, result)

    def _launchctl_error(self, verb: str, result: Result) -> CliError:
        """Build an error with launchd's message and the likely causes, which the message rarely includes."""
        lines = [f"launchctl {verb} failed: {result.message}", *self._likely_causes(result)]
        return CliError("\n".join(lines), hint='run "osaurusctl doctor" for details', code="launchd_refused")

    def _likely_causes(self, result: Result) -> list[str]:
        domain = self.target.domain
        if result.code in (launchctl.NO_DOMAIN, launchctl.UNSUPPORTED) or not self._query.has_domain(domain):
            return [f"launchd has no domain {domain} in this session ({self._query.session()})"]
        causes = self.file_problems()
        if self._query.print(self.target) is not None:
            causes.append(f"{self.target} is already loaded or still exiting")
        if self._query.is_disabled(self.target) or result.code == launchctl.DISABLED:
            causes.append("the label is disabled; check System Settings > General > Login Items & Extensions")
        if result.code == launchctl.WRONG_SESSION:
            causes.append("`LimitLoadToSessionType` excludes this kind of session")
        return causes or ["no known cause: the file, the domain and the label are valid"]

    def _drift(self, job: JobInfo | None) -> list[str]:
        installed = self._read_plist()
        if installed is None:
            return ["the job is loaded, but its file does not exist"] if job and not self.file.exists() else []
        drift = []
        try:
            expected = plist.render(plist.parse_job(installed, self.mode), self.target.label)
        except CliError as error:
            drift.append(f"the file differs from what this version writes: {error}")
        else:
            if keys := _differing_keys(installed, expected):
                drift.append(f"the file differs from what this version writes: {', '.join(keys)}")
        if job and (names := _differing_fields(installed, job)):
            drift.append(f"the loaded job differs from the file: {', '.join(names)}")
        return drift


def _differing_keys(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    # Compare encoded values: True == 1 in Python, but not in a property list.
    def encoded(tree: Mapping[str, Any], key: str) -> bytes:
        return plistlib.dumps(tree[key]) if key in tree else b""

    return sorted(key for key in left.keys() | right.keys() if encoded(left, key) != encoded(right, key))


def _differing_fields(tree: Mapping[str, Any], job: JobInfo) -> list[str]:
    """Return the fields in which a loaded job differs from its file, as far as launchctl prints them."""
    loaded = {
        "arguments": job.blocks.get("arguments"),
        "exit timeout": job.fields.get("exit timeout"),
        "minimum runtime": job.fields.get("minimum runtime"),
        "stderr path": job.fields.get("stderr path"),
    }
    in_file = {
        "arguments": tree.get("ProgramArguments"),
        "exit timeout": str(tree.get("ExitTimeOut")),
        "minimum runtime": str(tree.get("ThrottleInterval")),
        "stderr path": tree.get("StandardErrorPath"),
    }
    differing = [name for name, value in loaded.items() if value is not None and value != in_file[name]]
    return differing + (["environment"] if _lacks_variables(tree, job) else [])


def _lacks_variables(tree: Mapping[str, Any], job: JobInfo) -> bool:
    """Whether a loaded job lacks variables of its file.

    Others do not count: launchd adds variables of its own, such as XPC_SERVICE_NAME and, in recent versions of macOS,
    OSLogRateLimit.
    """
    lines = job.blocks.get("environment")
    if lines is None:
        return False
    expected = {f"{name} => {value}" for name, value in tree.get("EnvironmentVariables", {}).items()}
    return not expected <= set(lines)
