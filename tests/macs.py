"""A user account with launchd: a fake one, or the real one when the tests run on a Mac with a logged-in user."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from osaurusctl import process
from tests import daemons
from tests.daemons import invoke

ROOT = Path(__file__).parents[1]
FAKES = ROOT / "tests" / "fakes"
PROGRAMS = Path(sys.executable).parent
TIMEOUT_SECONDS = 90
SCALE = 0.02
"""The factor by which the fake launchd multiplies the delays before restarts."""


def has_screen() -> bool:
    """Whether this is a Mac with a user logged in at the screen."""
    if sys.platform != "darwin":
        return False
    run = subprocess.run(["launchctl", "print", f"gui/{os.getuid()}"], capture_output=True, check=False)
    return run.returncode == 0


def read_status(env: dict[str, str]) -> dict[str, Any]:
    """Return the output of `osaurusctl status --json` in this environment."""
    document: dict[str, Any] = json.loads(invoke(env, "status", "--json").stdout)
    return document


REAL = has_screen()
fake_only = pytest.mark.skipif(REAL, reason="requires the fake launchd")
LABEL = f"ai.osaurus.osaurusd.test-{os.getpid()}" if REAL else "ai.osaurus.osaurusd"


@dataclass
class Mac:
    """A home directory, an OSAURUS_HOME with special characters, and launchd."""

    root: Path
    env: dict[str, str]
    domains: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "os & home"

    @property
    def socket(self) -> Path:
        return self.home / "run" / "admin.sock"

    @property
    def plist(self) -> Path:
        return Path(self.env["HOME"]) / "Library" / "LaunchAgents" / f"{LABEL}.plist"

    @property
    def target(self) -> str:
        return f"gui/{os.getuid()}/{LABEL}"

    def login(self, kind: str = "gui") -> None:
        """Create a domain, which starts the jobs of a login."""
        if REAL:
            return
        supervisor = subprocess.Popen(
            [sys.executable, "-ES", "-m", "tests.fakes.launchd", f"{kind}/{os.getuid()}"],
            env=self.env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert supervisor.stdout is not None
        assert "ready\n" == supervisor.stdout.readline()
        self.domains[kind] = supervisor

    def logout(self, kind: str = "gui") -> None:
        supervisor = self.domains.pop(kind)
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(TIMEOUT_SECONDS)
        assert supervisor.stdout is not None
        supervisor.stdout.close()

    def inject_faults(self, **faults: Any) -> None:
        """Make the fake launchd fail in these ways from now on."""
        (self.root / "launchd" / "faults.json").write_text(json.dumps(faults))

    def ctl(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `osaurusctl`: the installed program on a real Mac."""
        if REAL:
            return self.run_installed(*arguments, **env)
        with contextlib.chdir(self.root):
            return invoke({**self.env, **env}, *arguments)

    def run_installed(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(PROGRAMS / "osaurusctl", *arguments, **env)

    def install(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `osaurusctl install`, on a free port unless the arguments include one."""
        port = [] if "--port" in arguments else ["--port", "0"]
        return self.ctl("install", *port, *self.path_options, *arguments, **env)

    @property
    def path_options(self) -> list[str]:
        """Options that pass the PYTHONPATH of the tests to the service."""
        return ["--env", f"PYTHONPATH={self.env['PYTHONPATH']}"] if "PYTHONPATH" in self.env else []

    def launchctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("launchctl", *arguments)

    def run(self, program: str | Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            env={**self.env, **env},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """Return the output of `osaurusctl status --json`, whether the daemon runs or not."""
        return read_status(self.env)

    def service(self) -> dict[str, Any]:
        """Return the service part of the status."""
        service: dict[str, Any] = self.status()["service"]
        return service

    @property
    def pid(self) -> int:
        """The pid of the daemon that uses the home."""
        return int(self.admin("GET", "/v0/status")[1]["pid"])

    def admin(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send one request over the Unix socket."""
        connection = daemons.UnixConnection(self.socket)
        headers = {"Host": "osaurusd", "Osaurus-Api": "1", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def is_serving(self) -> bool:
        try:
            return bool(self.admin("GET", "/v0/status")[1]["serving"])
        except OSError:
            return False

    @contextlib.contextmanager
    def post_chat(self, body: object) -> Iterator[HTTPConnection]:
        """Send a chat request, and yield the connection, from which the response can be read."""
        address = urlsplit(self.status()["endpoints"][0])
        connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            yield connection


@contextlib.contextmanager
def mac(*kinds: str) -> Iterator[Mac]:
    """Create an account with these domains, and remove everything at the end."""
    root = Path(tempfile.mkdtemp(prefix="om", dir=os.path.realpath("/tmp")))
    for folder in ("home", "launchd", "os & home"):
        (root / folder).mkdir()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OSAURUS_", "HF_", "XDG_", "FAKE_"))}
    env = {**inherited, "OSAURUS_HOME": str(root / "os & home"), "OSAURUS_ALLOW_ROOT": "1"}
    if REAL:
        env |= {"OSAURUS_SERVICE_LABEL": LABEL}
    else:
        env |= {
            "HOME": str(root / "home"),
            # The fakes run with the Python of the tests: another one may be a slow wrapper.
            "PATH": f"{FAKES}:{PROGRAMS}:{env['PATH']}",
            "OSAURUS_SERVICE_MANAGER": "launchd",
            "FAKE_LAUNCHD_STATE": str(root / "launchd"),
            "FAKE_LAUNCHD_SCALE": str(SCALE),
        }
    account = Mac(root, env)
    try:
        for kind in kinds:
            account.login(kind)
        yield account
    finally:
        if REAL:
            account.ctl("uninstall")
        for kind in list(account.domains):
            account.logout(kind)
        # A daemon that was started without launchd.
        if process.lock_owner(account.home / "run" / "admin.sock.lock"):
            account.ctl("down")
        shutil.rmtree(root, ignore_errors=True)
