"""The service under systemd: a unit of the user's own manager."""

import contextlib
import getpass
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from osaurusctl.errors import CliError
from osaurusctl.service import files
from osaurusctl.service.job import LABEL, Job, Mode, options
from osaurusctl.service.manager import Facts, Step
from osaurusctl.service.run import Result, Run

STOP_SECONDS = 45
"""From SIGTERM to SIGKILL: more than the daemon gives running requests."""

_POLL_SECONDS = 0.1
_STOP_MARGIN_SECONDS = 10.0
_OURS = frozenset({"OSAURUS_SUPERVISED"})
_SHOWN = (
    "LoadState", "ActiveState", "SubState", "MainPID", "NRestarts", "UnitFileState", "Result", "ExecMainStatus",
    "NeedDaemonReload",
)  # fmt: skip

_UNIT = """\
# Written by `osaurusctl install`; what is changed here is lost at the next installation.
[Unit]
Description=osaurusd, an always-on server of local language models
# It waits by itself for what it lacks, so that a start that fails is rare; systemd must not give up on it.
StartLimitIntervalSec=0

[Service]
# Started once its Unix socket answers; while it waits for a home, that may take long.
Type=notify
NotifyAccess=main
TimeoutStartSec=infinity
ExecStart={command}
Restart=on-failure
RestartSec=5
WatchdogSec=60
# More than the daemon gives running requests, which alone gets SIGTERM and ends its workers itself.
TimeoutStopSec={stop_seconds}
KillMode=mixed
UMask=0077
WorkingDirectory={home}
# Standard error is for crashes: the daemon logs to a file of its own.
Environment="OSAURUS_SUPERVISED=systemd"
{environment}
[Install]
WantedBy=default.target
"""


class Systemd:
    """Our unit.

    Args:
        run: runs a command line.
        label: the default one means the unit `osaurusd.service`.
        mode: only logins, for `loginctl enable-linger` makes one of them at boot.
        env: the environment.
    """

    name = "systemd"
    mode: Mode
    stop_seconds = STOP_SECONDS + _STOP_MARGIN_SECONDS

    def __init__(self, run: Run, label: str, mode: Mode, env: Mapping[str, str] = os.environ) -> None:
        if mode is not Mode.LOGIN:
            raise CliError(
                f"`--{mode}` is for launchd",
                hint="`loginctl enable-linger` has a user's services start at boot",
                code="not_under_systemd",
            )
        self.mode = mode
        self.unit = "osaurusd.service" if label == LABEL else f"{label}.service"
        config = Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        self.file = config / "systemd" / "user" / self.unit
        self._run = run

    def refuse(self) -> None:
        result = self._call("show-environment")
        if result.code:
            raise CliError(
                f"this session has no systemd of its user: {result.words}",
                hint="log in as that user instead of using `su` or `sudo`; `loginctl enable-linger` keeps it running "
                "without a login; `osaurusctl up` needs no service manager",
                code="no_domain",
            )

    def content(self, job: Job) -> bytes:
        return render(job).encode()

    def recorded(self) -> Job | None:
        content = files.read(self.file)
        return None if content is None else recorded(content.decode(errors="replace"))

    def facts(self) -> Facts:
        shown = self._shown()
        pid = int(shown.get("MainPID", "0"))
        enabled = shown.get("UnitFileState")
        restarts = int(shown.get("NRestarts") or 0)
        loaded = shown.get("LoadState") == "loaded"
        return Facts(
            manager=self.name,
            file=str(self.file),
            mode=self.mode,
            installed=self.file.exists(),
            enabled=enabled == "enabled" if enabled else None,
            loaded=loaded,
            running=pid > 0,
            state=f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', 'unknown')})",
            pid=pid or None,
            runs=restarts + 1 if loaded else None,
            last_exit=_last_exit(shown),
            drift=self._drift(shown),
        )

    def writing(self, content: bytes | None) -> Step:
        if content is None:
            return Step(f"{self._text('disable', self.unit)}; remove {self.file}", self._remove)
        return Step(f"write {self.file}", lambda: self._write(content))

    def loading(self) -> Step:
        words = [self._text(*command) for command in self._loading()]
        return Step("; ".join(words), lambda: self._all(self._loading()))

    def unloading(self) -> Step:
        return Step(self._text("stop", self.unit), self._stop)

    def starting(self) -> Step:
        return self._step("start", "--no-block", self.unit)

    def restarting(self) -> Step:
        return self._step("restart", "--no-block", self.unit)

    def enabling(self) -> Step:
        return self._step("enable", self.unit)

    def disabling(self) -> Step:
        return self._step("disable", self.unit)

    def advice(self) -> str | None:
        user = getpass.getuser()
        with contextlib.suppress(CliError):
            shown = self._run(["loginctl", "show-user", user, "--property=Linger"], self.stop_seconds)
            if shown.code == 0 and "Linger=yes" in shown.out:
                return None
        return f"it starts when {user} logs in; `loginctl enable-linger` has it start at boot"

    def file_faults(self) -> list[str]:
        """What is wrong with the installed unit; empty if it is right."""
        try:
            return [] if self.recorded() is not None else [f"{self.file} does not exist"]
        except CliError as error:
            return [str(error)]

    def _loading(self) -> list[tuple[str, ...]]:
        return [("daemon-reload",), ("enable", self.unit), ("start", "--no-block", self.unit)]

    def _step(self, *words: str) -> Step:
        return Step(self._text(*words), lambda: self._all([words]))

    def _all(self, commands: Iterable[tuple[str, ...]]) -> None:
        for words in commands:
            if (result := self._call(*words)).code:
                raise CliError(
                    f"{self._text(*words)} failed: {result.words}",
                    hint=f"`systemctl --user status {self.unit}` says more",
                    code="systemd_refused",
                )

    def _stop(self) -> None:
        if self._shown().get("LoadState") != "loaded":
            return
        self._all([("stop", self.unit)])
        deadline = time.monotonic() + self.stop_seconds
        while int(self._shown().get("MainPID", "0")):
            if time.monotonic() >= deadline:
                raise CliError(f"{self.unit} has not ended after {self.stop_seconds:g} s", code="stop_timeout")
            time.sleep(_POLL_SECONDS)

    def _write(self, content: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        files.replace(self.file, content, 0o644)

    def _remove(self) -> None:
        if self.file.exists():
            self._all([("disable", self.unit)])
            self.file.unlink(missing_ok=True)
            self._all([("daemon-reload",)])

    def _shown(self) -> dict[str, str]:
        result = self._call("show", self.unit, f"--property={','.join(_SHOWN)}")
        return dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)

    def _drift(self, shown: Mapping[str, str]) -> list[str]:
        content = files.read(self.file)
        if content is None:
            return []
        found = []
        try:
            if render(recorded(content.decode(errors="replace"))).encode() != content:
                found.append("the file is not what this version writes")
        except CliError as error:
            found.append(f"the file is not what this version writes: {error}")
        if shown.get("NeedDaemonReload") == "yes":
            found.append("the loaded unit is not what the file says")
        return found

    def _call(self, *words: str) -> Result:
        return self._run(["systemctl", "--user", *words], self.stop_seconds)

    def _text(self, *words: str) -> str:
        return shlex.join(["systemctl", "--user", *words])


def render(job: Job) -> str:
    """The unit file of a job."""
    variables = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in sorted(job.env.items()))
    program, *arguments = job.arguments
    return _UNIT.format(
        # A dollar sign starts a variable in arguments only.
        command=" ".join([_quoted(program), *(_quoted(word).replace("$", "$$") for word in arguments)]),
        stop_seconds=STOP_SECONDS,
        home=str(job.user_home).replace("%", "%%"),
        environment=variables,
    )


def recorded(text: str) -> Job:
    """The job that a unit file of ours describes.

    Raises:
        CliError: it is not one of ours.
    """
    commands = [_words(value) for value in _values(text, "ExecStart")]
    homes = list(_values(text, "WorkingDirectory"))
    if len(commands) != 1 or not commands[0] or len(homes) != 1:
        raise CliError("it is no unit of osaurusd", code="bad_service_file")
    pairs = [word.partition("=") for value in _values(text, "Environment") for word in _words(value)]
    asked = options(word.replace("$$", "$") for word in commands[0])
    return Job(
        launcher=Path(commands[0][0]),
        user_home=Path(homes[0].replace("%%", "%")),
        log_dir=Path(),
        host=asked.host,
        port=asked.port,
        insecure=asked.insecure,
        env={name: value for name, _, value in pairs if name not in _OURS},
    )


def _values(text: str, key: str) -> Iterator[str]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name == key:
            yield value


def _quoted(word: str) -> str:
    """One word, as systemd.syntax(7) wants it: quotes and backslashes escaped, percent signs doubled."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _words(value: str) -> list[str]:
    try:
        return [word.replace("%%", "%") for word in shlex.split(value)]
    except ValueError as error:
        raise CliError(f"it is no unit of osaurusd: {error}", code="bad_service_file") from error


def _last_exit(shown: Mapping[str, str]) -> str | None:
    result, status = shown.get("Result"), shown.get("ExecMainStatus")
    if result in (None, "", "success"):
        return status if status not in (None, "", "0") else None
    return f"{status} ({result})"
