"""How installation and service under launchd recover from errors, with the installed programs and real processes."""

import http.server
import json
import os
import plistlib
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, macs
from tests.macs import Mac

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mac() -> Iterator[Mac]:
    """A Mac with a user logged in at the screen."""
    with macs.mac("gui") as account:
        yield account


@pytest.fixture
def occupied_port() -> Iterator[int]:
    """A port with another HTTP server, which answers every request with 200."""

    class OtherServer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.long
def test_killed_daemon_is_restarted(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    os.kill(pid, signal.SIGKILL)
    daemons.wait_until(lambda: mac.is_serving() and mac.pid != pid)

    service = mac.service()
    assert service["ready"]
    assert 2 == service["runs"]
    assert "9" in service["last_exit"]


@pytest.mark.long
@macs.fake_only
def test_temporary_errors_of_launchd_are_retried(mac: Mac) -> None:
    """The label is disabled, bootstrap fails five times with EIO, and print-disabled uses the old format."""
    mac.launchctl("disable", mac.target)
    mac.inject_faults(bootstrap_eio=5, old_print_disabled=True)
    first = mac.install()
    assert 0 == first.returncode, first.stderr
    assert (True, True) == ((service := mac.service())["ready"], service["enabled"])
    mac.inject_faults(bootout_busy=1, bootstrap_busy=2)
    changed = mac.install("--env", "CHANGED=yes")

    assert 0 == changed.returncode, changed.stderr
    assert mac.service()["ready"]


@macs.fake_only
@pytest.mark.long
def test_permanent_error_of_launchd_is_reported_and_rolled_back(mac: Mac) -> None:
    mac.inject_faults(bootstrap_eio=10_000)
    run = mac.install()

    assert 1 == run.returncode
    assert "Bootstrap failed: 5: Input/output error" in run.stderr
    assert "no known cause" in run.stderr
    assert "the installation was rolled back" in run.stderr
    assert not mac.plist.exists()


@macs.fake_only
@pytest.mark.long
def test_service_without_a_process_is_rolled_back(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    before = mac.plist.read_bytes()
    mac.inject_faults(no_process=True)
    run = mac.install("--env", "CHANGED=yes", "--timeout", "1")

    assert 1 == run.returncode
    assert "launchd accepted the service, but no process is running" in run.stderr
    assert "the previous service was restored" in run.stderr
    assert before == mac.plist.read_bytes()
    mac.inject_faults()
    assert 0 == mac.ctl("restart").returncode


@macs.fake_only
@pytest.mark.long
def test_job_that_launchd_does_not_start_by_itself_is_started(mac: Mac) -> None:
    """On macOS 26, bootstrap can succeed without a process: the domain starts jobs only on demand."""
    mac.inject_faults(pended=1)
    installed = mac.install()
    assert 0 == installed.returncode, installed.stderr
    assert (True, 1) == ((service := mac.service())["ready"], service["runs"])

    mac.ctl("stop")
    mac.inject_faults(pended=1)
    mac.launchctl("bootstrap", f"gui/{os.getuid()}", str(mac.plist))
    assert (True, False, 0) == tuple(mac.service()[name] for name in ("loaded", "running", "runs"))
    doctor = mac.ctl("doctor").stdout
    assert "launchd has loaded the job, but never started it" in doctor
    assert "osaurusctl start" in doctor
    assert 0 == mac.ctl("start").returncode
    assert mac.service()["ready"]


@macs.fake_only
@pytest.mark.long
def test_file_that_others_can_write_is_reported_and_fixed_by_install(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    mac.plist.chmod(0o664)
    mac.login()
    started = mac.ctl("start")
    assert 1 == started.returncode
    assert f"{mac.plist} is writable by other users" in started.stderr
    assert "chmod 644" in mac.ctl("doctor").stdout

    assert 0 == mac.install().returncode
    assert mac.service()["ready"]


@pytest.mark.long
def test_moved_environment_is_reported_and_fixed_by_install(mac: Mac) -> None:
    old, new = mac.root / "old venv", mac.root / "new venv"
    venv.create(old, symlinks=True)
    (packages,) = old.glob("lib/python*/site-packages")
    paths = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(paths))
    first = mac.run(old / "bin" / "python", "-m", "osaurusctl", "install", "--port", "0", PYTHONPATH="")
    assert 0 == first.returncode, first.stderr
    old.rename(new)
    os.kill(mac.pid, signal.SIGKILL)
    errors = mac.home / "logs" / "launchd.err.log"
    daemons.wait_until(lambda: errors.exists() and "cannot import osaurusd" in errors.read_text())

    checks = json.loads(mac.run(new / "bin" / "python", "-m", "osaurusctl", "doctor", "--json", PYTHONPATH="").stdout)[
        "checks"
    ]
    (launcher,) = [check for check in checks if check["name"] == "launcher"]
    assert "failure" == launcher["verdict"]
    assert str(old) in launcher["detail"]
    assert "osaurusctl install" in launcher["fix"]
    fixed = mac.run(new / "bin" / "python", "-m", "osaurusctl", "install", "--port", "0", PYTHONPATH="")
    assert 0 == fixed.returncode, fixed.stderr
    assert mac.service()["ready"]


@pytest.mark.long
def test_installation_that_needs_pythonpath_of_the_shell_is_rolled_back(mac: Mac) -> None:
    """The service does not get the PYTHONPATH of the shell."""
    bare = mac.root / "venv"
    venv.create(bare, symlinks=True)
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    arguments = ["-m", "osaurusctl", "install", "--port", "0", "--timeout", "1"]
    run = mac.run(bare / "bin" / "python", *arguments, PYTHONPATH=paths)

    assert 1 == run.returncode
    assert f"{bare}/bin/python cannot import osaurusd" in run.stderr
    assert "the installation was rolled back" in run.stderr
    assert not (mac.home / "bin").exists()


@pytest.mark.long
def test_service_waits_while_another_program_uses_its_port(mac: Mac, occupied_port: int) -> None:
    """A 200 for `/health` from another program does not count as ready."""
    run = mac.install("--port", str(occupied_port), "--timeout", "5")
    assert 1 == run.returncode
    assert str(occupied_port) in run.stderr
    assert f"pid {os.getpid()}" in run.stderr
    assert "stays installed" in run.stderr

    status = mac.status()
    assert not status["serving"]
    assert str(os.getpid()) in status["faults"][0]
    assert (True, False) == (status["service"]["running"], status["service"]["ready"])
    assert 1 == mac.ctl("doctor").returncode
    assert 1 == mac.service()["runs"]


def start_installation(mac: Mac, port: int) -> subprocess.Popen[str]:
    """Run `osaurusctl install` with a port, without waiting for it."""
    return subprocess.Popen(
        [macs.PROGRAMS / "osaurusctl", "install", "--port", str(port), *mac.path_options],
        env=mac.env,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_service_serves_once_its_port_is_free(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        installation = start_installation(mac, holder.getsockname()[1])
        daemons.wait_until(lambda: mac.socket.exists())
        pid = mac.service()["pid"]
    _, stderr = installation.communicate(timeout=macs.TIMEOUT_SECONDS)

    assert 0 == installation.returncode, stderr
    assert (pid, 1) == (mac.service()["pid"], mac.service()["runs"])


@pytest.mark.long
def test_change_to_a_port_in_use_is_rolled_back(mac: Mac, occupied_port: int) -> None:
    assert 0 == mac.install().returncode
    before = mac.plist.read_bytes()
    run = mac.install("--port", str(occupied_port), "--timeout", "5")

    assert 1 == run.returncode
    assert "the previous service was restored" in run.stderr
    assert before == mac.plist.read_bytes()
    daemons.wait_until(lambda: mac.is_serving())


def test_service_recovers_from_an_invalid_configuration(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    config = mac.home / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    assert 1 == mac.ctl("restart", "--timeout", "0").returncode
    # The new process reports the reason once it has started, which may take long on a busy machine.
    daemons.wait_until(lambda: bool(mac.status().get("faults")))
    assert "server.prot" in mac.status()["faults"][0]
    run = mac.ctl("start", "--timeout", "0")
    assert 1 == run.returncode
    assert "server.prot" in run.stderr
    assert (503, "not_serving") == (
        (answer := mac.admin("GET", "/v0/models"))[0],
        answer[1]["error"]["code"],
    )
    pid = mac.service()["pid"]

    config.write_text("")
    daemons.wait_until(lambda: mac.is_serving())
    assert pid == mac.service()["pid"]


@macs.fake_only
@pytest.mark.long
def test_service_waits_for_another_daemon_with_the_same_home(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    env = {k: v for k, v in mac.env.items() if not k.startswith("OSAURUS_")}
    with daemons.running(mac.home, **{k: env[k] for k in ("HOME",)}) as other:
        mac.login()
        daemons.wait_until(lambda: mac.service()["running"])
        service = mac.service()
        assert not service["ready"]
        assert service["pid"] != other.process.pid == mac.status()["pid"]
        assert f"waiting for another osaurusd, pid {other.process.pid}" in mac.ctl("status").stdout
    daemons.wait_until(lambda: mac.is_serving())

    assert mac.service()["ready"]
    assert 1 == mac.service()["runs"]


@pytest.mark.long
def test_drift_is_reported_and_restart_loads_the_file(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    tree = plistlib.loads(mac.plist.read_bytes())
    mac.plist.write_bytes(plistlib.dumps({**tree, "ExitTimeOut": 40}))
    assert [
        "the file differs from what this version writes: ExitTimeOut",
        "the loaded job differs from the file: exit timeout",
    ] == mac.service()["drift"]
    assert "ExitTimeOut" in mac.ctl("doctor").stdout

    assert 0 == mac.ctl("restart").returncode
    assert ["the file differs from what this version writes: ExitTimeOut"] == mac.service()["drift"]
    assert 0 == mac.install().returncode
    assert [] == mac.service()["drift"]


@macs.fake_only
@pytest.mark.long
def test_loaded_job_without_a_file_can_be_uninstalled(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.plist.unlink()
    service = mac.service()
    assert (False, True, ["the job is loaded, but its file does not exist"]) == (
        service["installed"],
        service["loaded"],
        service["drift"],
    )

    assert 0 == mac.ctl("uninstall").returncode
    assert not mac.is_serving()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="requires prlimit")
def test_service_continues_if_its_log_cannot_be_written(mac: Mac) -> None:
    import resource  # noqa: PLC0415 - prlimit exists only on Linux

    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    daemons.wait_until(lambda: mac.status()["faults"] != [])
    (fault,) = mac.status()["faults"]
    assert f"{mac.home}/logs/osaurusd.log" in fault
    assert mac.service()["ready"]

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    daemons.wait_until(lambda: mac.status()["faults"] == [])


def test_interrupted_installation_is_rolled_back(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        installation = start_installation(mac, holder.getsockname()[1])
        daemons.wait_until(lambda: mac.socket.exists())
        installation.send_signal(signal.SIGINT)
        _, stderr = installation.communicate(timeout=macs.TIMEOUT_SECONDS)

    assert 130 == installation.returncode
    assert "interrupted" in stderr
    assert not mac.plist.exists()
    assert 3 == mac.ctl("status").returncode
