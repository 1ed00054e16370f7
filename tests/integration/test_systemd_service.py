"""The service under systemd, with the installed programs and real processes, and the daemon's notifications."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests import daemons
from tests.daemons import UnixConnection, invoke, wait_until
from tests.macs import read_status

FAKES = Path(__file__).parents[1] / "fakes"
PROGRAMS = Path(sys.executable).parent
TIMEOUT_SECONDS = 90


class Account:
    """A user account with a fake systemd."""

    def __init__(self, root: Path) -> None:
        self.home = root / "os & 100%h"
        self.unit = root / "home" / ".config" / "systemd" / "user" / "osaurusd.service"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OSAURUS_", "HF_", "XDG_"))}
        self.env = {
            **inherited,
            "HOME": str(root / "home"),
            # The fakes run with the Python of the tests: another one may be a slow wrapper.
            "PATH": f"{FAKES}:{PROGRAMS}:{os.environ['PATH']}",
            "OSAURUS_HOME": str(self.home),
            "OSAURUS_ALLOW_ROOT": "1",
            "OSAURUS_SERVICE_MANAGER": "systemd",
            "FAKE_SYSTEMD_STATE": str(root / "systemd"),
            "FAKE_SYSTEMD_SCALE": "0.05",
        }

    def login(self) -> subprocess.Popen[str]:
        manager = subprocess.Popen(
            [sys.executable, "-IS", FAKES / "systemd.py"], env=self.env, stdout=subprocess.PIPE, text=True
        )
        assert manager.stdout is not None
        assert "ready\n" == manager.stdout.readline()
        return manager

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return invoke(self.env, *arguments)

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.ctl(*self.install_arguments, *arguments)

    @property
    def install_arguments(self) -> list[str]:
        path = ["--env", f"PYTHONPATH={self.env['PYTHONPATH']}"] if "PYTHONPATH" in self.env else []
        return ["install", "--port", "0", *path]

    def service(self) -> dict[str, Any]:
        service: dict[str, Any] = read_status(self.env)["service"]
        return service


def log_out(manager: subprocess.Popen[str]) -> None:
    manager.terminate()
    manager.wait(TIMEOUT_SECONDS)
    assert manager.stdout is not None
    manager.stdout.close()


@pytest.fixture
def account() -> Iterator[Account]:
    root = Path(tempfile.mkdtemp(prefix="ol", dir="/tmp"))
    for folder in ("home", "systemd", "os & 100%h"):
        (root / folder).mkdir()
    yield Account(root)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def linux(account: Account) -> Iterator[Account]:
    manager = account.login()
    yield account
    log_out(manager)


def test_installed_service_restarts_after_a_kill_and_obeys_commands(linux: Account) -> None:
    command = [PROGRAMS / "osaurusctl", *linux.install_arguments]
    run = subprocess.run(command, env=linux.env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    assert 0 == run.returncode, run.stderr
    assert "enable-linger" in run.stderr
    service = linux.service()
    assert [True] * 5 == [service[name] for name in ("installed", "enabled", "loaded", "running", "ready")]
    assert ("active (running)", []) == (service["state"], service["drift"])
    assert 0o644 == stat.S_IMODE(linux.unit.stat().st_mode)

    os.kill(service["pid"], signal.SIGKILL)
    wait_until(lambda: linux.service()["runs"] == 2 and linux.service()["ready"])
    assert 0 == linux.ctl("restart").returncode
    assert 0 == linux.ctl("stop").returncode
    assert not linux.service()["running"]
    assert 0 == linux.ctl("start").returncode
    assert linux.service()["ready"]


def test_changed_unit_is_loaded_and_uninstall_removes_it(linux: Account) -> None:
    assert 0 == linux.install().returncode
    pid = linux.service()["pid"]
    assert 0 == linux.install("--env", "CHANGED=a %n b").returncode
    service = linux.service()
    assert (True, []) == (service["ready"], service["drift"])
    assert pid != service["pid"]
    linux.unit.write_text(linux.unit.read_text() + "\n")
    assert 2 == len(linux.service()["drift"])

    assert 0 == linux.ctl("uninstall").returncode
    assert not linux.unit.exists()
    assert 3 == linux.ctl("status").returncode


@pytest.mark.long
def test_disabled_service_does_not_start_at_login(account: Account) -> None:
    manager = account.login()
    assert 0 == account.install().returncode
    assert 0 == account.ctl("disable").returncode
    log_out(manager)
    manager = account.login()
    service = account.service()
    assert (False, False) == (service["enabled"], service["running"])
    assert 0 == account.ctl("enable").returncode
    log_out(manager)
    manager = account.login()
    wait_until(lambda: account.service()["ready"])
    log_out(manager)


def test_session_without_systemd_suggests_up(account: Account) -> None:
    run = account.install()

    assert 1 == run.returncode
    assert "no systemd user manager" in run.stderr
    assert "osaurusctl up" in run.stderr


class NotifySocket:
    """Receives the daemon's notifications, in place of systemd."""

    def __init__(self, address: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        self.socket.settimeout(TIMEOUT_SECONDS)

    def wait_for(self, field: str) -> dict[str, str]:
        while True:
            lines = self.socket.recv(65536).decode().splitlines()
            if field in lines:
                return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def notify_socket(home: Path) -> Iterator[NotifySocket]:
    receiver = NotifySocket(home / "notify")
    yield receiver
    receiver.socket.close()


def test_daemon_notifies_ready_watchdog_and_stopping(home: Path, notify_socket: NotifySocket) -> None:
    with daemons.running(home, NOTIFY_SOCKET=str(home / "notify"), WATCHDOG_USEC="200000") as daemon:
        ready = notify_socket.wait_for("READY=1")
        assert daemon.url in ready["STATUS"]
        notify_socket.wait_for("WATCHDOG=1")
        notify_socket.wait_for("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGTERM)
        notify_socket.wait_for("STOPPING=1")
        assert 0 == daemon.process.wait(TIMEOUT_SECONDS)


@pytest.mark.long
def test_degraded_daemon_is_ready_when_its_socket_answers(home: Path, notify_socket: NotifySocket) -> None:
    (home / "config.toml").write_text("prot = 1\n")
    env = daemons.environment(home, NOTIFY_SOCKET=str(home / "notify"), OSAURUS_SUPERVISED="systemd")
    process = subprocess.Popen([sys.executable, "-m", "osaurusd", "serve", "--port", "0"], env=env)
    try:
        notify_socket.wait_for("READY=1")
        with contextlib.closing(UnixConnection(home / "run" / "admin.sock")) as connection:
            connection.request("GET", "/v0/status", headers={"Host": "osaurusd"})
            assert not json.loads(connection.getresponse().read())["serving"]
        (home / "config.toml").unlink()
        while "http://" not in notify_socket.wait_for("READY=1")["STATUS"]:
            pass
    finally:
        process.terminate()
        assert 0 == process.wait(TIMEOUT_SECONDS)


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="requires systemd-socket-activate")
def test_sockets_passed_by_systemd_are_served(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    admin = home / "own.sock"
    names = ["--listen", f"127.0.0.1:{port}", "--listen", str(admin), "--fdname=http:admin"]
    passed = [f"--setenv={name}" for name in daemons.environment(home) if name != "PATH"]
    process = subprocess.Popen(
        ["systemd-socket-activate", *names, *passed, sys.executable, "-m", "osaurusd", "serve"],
        env=daemons.environment(home),
        stderr=subprocess.DEVNULL,
    )
    try:
        # It starts the daemon at the first connection, which the daemon then answers.
        wait_until(admin.exists)
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)) as http:
            http.request("GET", "/health")
            assert 200 == http.getresponse().status
        with contextlib.closing(UnixConnection(admin)) as unix:
            unix.request("GET", "/v0/status", headers={"Host": "osaurusd"})
            assert [f"http://127.0.0.1:{port}"] == json.loads(unix.getresponse().read())["endpoints"]
        assert not (home / "run" / "admin.sock").exists()
    finally:
        process.terminate()
        assert 0 == process.wait(TIMEOUT_SECONDS)
