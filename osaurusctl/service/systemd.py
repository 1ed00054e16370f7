"""The service under systemd: a unit of the user's service manager."""

import contextlib
import getpass
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from osaurusctl.errors import CliError
from osaurusctl.service.job import LABEL, RESERVED, Job, Mode, parse_serve_options
from osaurusctl.service.manager import Result, RunCommand, ServiceStatus, Step
from osaurusd.wire.files import read_file, replace_file

STOP_SECONDS = 45
"""From SIGTERM to SIGKILL. It must exceed the daemon's grace period for running requests."""

_POLL_SECONDS = 0.1
_STOP_MARGIN_SECONDS = 10.0
_PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "MainPID", "NRestarts", "UnitFileState", "Result", "ExecMainStatus",
    "NeedDaemonReload",
)  # fmt: skip

_UNIT = """\
# Written by `osaurusctl install`, which overwrites changes.
[Unit]
Description=osaurusd, a local server for language models
# A failed start is rare, because the daemon waits for missing prerequisites; systemd must keep restarting it.
StartLimitIntervalSec=0

[Service]
# The start is complete when the Unix socket answers. It can take long if another daemon uses the same home.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart={command}
Restart=on-failure
RestartSec=5
WatchdogSec=60
# Longer than the daemon's grace period for running requests. Only the daemon gets SIGTERM; it stops its workers.
TimeoutStopSec={stop_seconds}
KillMode=mixed
UMask=0077
WorkingDirectory={home}
# The daemon logs to its own file; standard error is for crashes.
Environment="OSAURUS_SUPERVISED=systemd"
{environment}
[Install]
WantedBy=default.target
"""


class Systemd:
    """The osaurusd unit.

    Args:
        run: runs a command line.
        label: the default label selects the unit `osaurusd.service`.
        mode: must be LOGIN; `loginctl enable-linger` makes a user's units start at boot.
        env: the environment.
    """

    name = "systemd"
    mode: Mode
    stop_timeout = STOP_SECONDS + _STOP_MARGIN_SECONDS

    def __init__(self, run: RunCommand, label: str, mode: Mode, env: Mapping[str, str] = os.environ) -> None:
        if mode is not Mode.LOGIN:
            raise CliError(
                f"--{mode} requires launchd",
                hint='run "loginctl enable-linger" to start the user\'s services at boot',
                code="not_under_systemd",
            )
        self.mode = mode
        self.unit = "osaurusd.service" if label == LABEL else f"{label}.service"
        config = Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        self.file = config / "systemd" / "user" / self.unit
        self._run = run

    def check_available(self) -> None:
        result = self._call("show-environment")
        if result.code:
            raise CliError(
                f"this session has no systemd user manager: {result.message}",
                hint='log in as the user instead of using su or sudo, or run "osaurusctl up" to start osaurusd without '
                "a service manager",
                code="no_domain",
            )

    def render(self, job: Job) -> bytes:
        return render_unit(job).encode()

    def installed_job(self) -> Job | None:
        content = read_file(self.file)
        return None if content is None else parse_unit(content.decode(errors="replace"))

    def status(self) -> ServiceStatus:
        unit = self._show()
        pid = int(unit.get("MainPID", "0"))
        enabled = unit.get("UnitFileState")
        loaded = unit.get("LoadState") == "loaded"
        return ServiceStatus(
            manager=self.name,
            file=str(self.file),
            mode=self.mode,
            installed=self.file.exists(),
            enabled=enabled == "enabled" if enabled else None,
            loaded=loaded,
            running=pid > 0,
            state=f"{unit.get('ActiveState', 'unknown')} ({unit.get('SubState', 'unknown')})",
            pid=pid or None,
            runs=int(unit.get("NRestarts") or 0) + 1 if loaded else None,
            last_exit=_last_exit(unit),
            drift=self._drift(unit),
        )

    def write_step(self, content: bytes | None) -> Step:
        if content is None:
            return Step(f"{self._describe('disable', self.unit)}; remove {self.file}", self._remove)
        return Step(f"write {self.file}", lambda: self._write(content))

    def load_step(self) -> Step:
        commands = [("daemon-reload",), ("enable", self.unit), ("start", "--no-block", self.unit)]
        return Step("; ".join(self._describe(*arguments) for arguments in commands), lambda: self._run_all(commands))

    def unload_step(self) -> Step:
        return Step(self._describe("stop", self.unit), self._stop)

    def start_step(self) -> Step:
        return self._step("start", "--no-block", self.unit)

    def restart_step(self) -> Step:
        return self._step("restart", "--no-block", self.unit)

    def enable_step(self) -> Step:
        return self._step("enable", self.unit)

    def disable_step(self) -> Step:
        return self._step("disable", self.unit)

    def install_note(self) -> str | None:
        user = getpass.getuser()
        with contextlib.suppress(CliError):
            result = self._run(["loginctl", "show-user", user, "--property=Linger"], self.stop_timeout)
            if result.code == 0 and "Linger=yes" in result.out:
                return None
        return f'the service starts when {user} logs in; run "loginctl enable-linger" to start it at boot'

    def file_problems(self) -> list[str]:
        try:
            return [] if self.installed_job() is not None else [f"{self.file} does not exist"]
        except CliError as error:
            return [str(error)]

    def _step(self, *arguments: str) -> Step:
        return Step(self._describe(*arguments), lambda: self._run_all([arguments]))

    def _run_all(self, commands: Iterable[tuple[str, ...]]) -> None:
        for arguments in commands:
            if (result := self._call(*arguments)).code:
                raise CliError(
                    f"{self._describe(*arguments)} failed: {result.message}",
                    hint=f'run "systemctl --user status {self.unit}" for details',
                    code="systemd_refused",
                )

    def _stop(self) -> None:
        if self._show().get("LoadState") != "loaded":
            return
        self._run_all([("stop", self.unit)])
        deadline = time.monotonic() + self.stop_timeout
        while int(self._show().get("MainPID", "0")):
            if time.monotonic() >= deadline:
                raise CliError(f"{self.unit} has not exited after {self.stop_timeout:g} s", code="stop_timeout")
            time.sleep(_POLL_SECONDS)

    def _write(self, content: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.file, content, 0o644)

    def _remove(self) -> None:
        if self.file.exists():
            self._run_all([("disable", self.unit)])
            self.file.unlink(missing_ok=True)
            self._run_all([("daemon-reload",)])

    def _show(self) -> dict[str, str]:
        result = self._call("show", self.unit, f"--property={','.join(_PROPERTIES)}")
        return dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)

    def _drift(self, unit: Mapping[str, str]) -> list[str]:
        content = read_file(self.file)
        if content is None:
            return []
        drift = []
        try:
            if render_unit(parse_unit(content.decode(errors="replace"))).encode() != content:
                drift.append("the file differs from what this version writes")
        except CliError as error:
            drift.append(f"the file differs from what this version writes: {error}")
        if unit.get("NeedDaemonReload") == "yes":
            drift.append("the loaded unit differs from the file")
        return drift

    def _call(self, *arguments: str) -> Result:
        return self._run(["systemctl", "--user", *arguments], self.stop_timeout)

    def _describe(self, *arguments: str) -> str:
        return shlex.join(["systemctl", "--user", *arguments])


def render_unit(job: Job) -> str:
    """Return the unit file of a job."""
    variables = "".join(f"Environment={_quote(f'{name}={value}')}\n" for name, value in sorted(job.env.items()))
    program, *arguments = job.arguments
    return _UNIT.format(
        # systemd expands variables in arguments, but not in the program.
        command=" ".join([_quote(program), *(_quote(word).replace("$", "$$") for word in arguments)]),
        stop_seconds=STOP_SECONDS,
        home=str(job.user_home).replace("%", "%%"),
        environment=variables,
    )


def parse_unit(text: str) -> Job:
    """Return the job that a unit written by `render_unit` describes.

    Raises:
        CliError: the unit was not written by `render_unit`.
    """
    commands = [_split(value) for value in _values(text, "ExecStart")]
    homes = list(_values(text, "WorkingDirectory"))
    if len(commands) != 1 or not commands[0] or len(homes) != 1:
        raise CliError("the unit file was not written by osaurusctl", code="bad_service_file")
    variables = [word.partition("=") for value in _values(text, "Environment") for word in _split(value)]
    options = parse_serve_options(word.replace("$$", "$") for word in commands[0])
    return Job(
        launcher=Path(commands[0][0]),
        user_home=Path(homes[0].replace("%%", "%")),
        log_dir=Path(),
        host=options.host,
        port=options.port,
        insecure=options.insecure,
        env={name: value for name, _, value in variables if name not in RESERVED},
    )


def _values(text: str, key: str) -> Iterator[str]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name == key:
            yield value


def _quote(word: str) -> str:
    """Quote a word according to systemd.syntax(7): escape quotes and backslashes, double percent signs."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _split(value: str) -> list[str]:
    try:
        return [word.replace("%%", "%") for word in shlex.split(value)]
    except ValueError as error:
        raise CliError(f"the unit file was not written by osaurusctl: {error}", code="bad_service_file") from error


def _last_exit(unit: Mapping[str, str]) -> str | None:
    result, status = unit.get("Result"), unit.get("ExecMainStatus")
    if result in (None, "", "success"):
        return status if status not in (None, "", "0") else None
    return f"{status} ({result})"
