"""The service under launchd, from installation to removal, with the installed programs and real processes."""

import http.server
import json
import os
import plistlib
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import daemons, macs
from tests.macs import Mac
from tests.models import make_tiny

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Continue."}], "max_tokens": 4}
TIMEOUT_SECONDS = 30
ROOT = Path(__file__).parents[2]

fake_only = pytest.mark.skipif(macs.REAL, reason="requires the fake launchd")


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


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that depends on another process."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def is_serving(mac: Mac) -> bool:
    try:
        return mac.admin("GET", "/v0/status")[1]["serving"]
    except OSError:
        return False


def post_chat(mac: Mac, body: object) -> HTTPConnection:
    address = urlsplit(mac.status()["endpoints"][0])
    connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_installed_service_answers_a_chat_request(mac: Mac, smollm_folder: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", smollm_folder)
    run = mac.install()
    assert 0 == run.returncode, run.stderr

    service = mac.service()
    assert [True] * 5 == [service[name] for name in ("installed", "enabled", "loaded", "running", "ready")]
    assert [] == service["drift"]
    assert 1 == service["runs"]
    connection = post_chat(mac, CHAT)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert "assistant" == answer["choices"][0]["message"]["role"]


def test_second_installation_changes_nothing(mac: Mac) -> None:
    """The file is writable only by its user, and runs the launcher."""
    assert 0 == mac.install("--env", "EXAMPLE=a & b").returncode
    pid = mac.pid
    again = mac.install("--env", "EXAMPLE=a & b")
    assert 0 == again.returncode
    assert f"osaurusd is already installed and running (pid {pid})" == again.stdout.splitlines()[0]
    assert pid == mac.pid

    tree = plistlib.loads(mac.plist.read_bytes())
    assert 0o644 == stat.S_IMODE(mac.plist.stat().st_mode)
    assert [str(mac.home / "bin" / "osaurusd"), "serve", "--port", "0"] == tree["ProgramArguments"]
    assert "a & b" == tree["EnvironmentVariables"]["EXAMPLE"]
    assert str(mac.home) == tree["EnvironmentVariables"]["OSAURUS_HOME"]


@fake_only
def test_service_starts_at_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    assert not is_serving(mac)
    mac.login()

    wait_until(lambda: is_serving(mac))


def test_killed_daemon_is_restarted(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_serving(mac) and mac.pid != pid)

    service = mac.service()
    assert service["ready"]
    assert 2 == service["runs"]
    assert "9" in service["last_exit"]


@fake_only
def test_stop_lasts_until_start_or_the_next_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    stopped = mac.ctl("stop")
    assert 0 == stopped.returncode
    assert '"osaurusctl start" or the next login' in stopped.stderr
    service = mac.service()
    assert (False, True) == (service["loaded"], service["enabled"])
    assert 0 == mac.ctl("start").returncode
    assert is_serving(mac)

    assert 0 == mac.ctl("stop").returncode
    mac.logout()
    mac.login()
    wait_until(lambda: is_serving(mac))


@fake_only
def test_disabled_service_does_not_start_at_login_but_can_be_started(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("disable").returncode
    mac.logout()
    mac.login()
    service = mac.service()
    assert (False, False) == (service["loaded"], service["enabled"])

    started = mac.ctl("start")
    assert 0 == started.returncode
    assert "disabled" in started.stderr
    service = mac.service()
    assert (True, False) == (service["ready"], service["enabled"])
    assert 0 == mac.ctl("enable").returncode
    assert mac.service()["enabled"]


@pytest.mark.long
def test_up_and_down_control_the_service(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("down").returncode
    assert not mac.service()["loaded"]
    up = mac.ctl("up")

    assert 0 == up.returncode
    assert "the service is running" in up.stdout
    assert mac.service()["ready"]


@pytest.mark.long
def test_restart_lets_running_requests_finish(mac: Mac, smollm_folder: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", smollm_folder, eos_token_id=49151)
    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    connection = post_chat(mac, {**CHAT, "max_tokens": 200, "stream": True})
    stream = connection.getresponse()
    stream.readline()
    restarted = mac.ctl("restart")

    assert 0 == restarted.returncode, restarted.stderr
    assert "[DONE]" in stream.read().decode()
    connection.close()
    assert mac.service()["ready"]
    assert pid != mac.service()["pid"]


def test_reinstallation_lets_running_requests_finish(mac: Mac, smollm_folder: Path) -> None:
    """The old process drains after bootout has returned; until it exits, bootstrap fails."""
    make_tiny(mac.home / "models" / "tiny", smollm_folder, eos_token_id=49151)
    assert 0 == mac.install().returncode
    connection = post_chat(mac, {**CHAT, "max_tokens": 200, "stream": True})
    stream = connection.getresponse()
    stream.readline()
    changed = mac.install("--env", "CHANGED=yes")

    assert 0 == changed.returncode, changed.stderr
    assert "[DONE]" in stream.read().decode()
    connection.close()
    assert mac.service()["ready"]
    assert b"CHANGED" in mac.plist.read_bytes()


@fake_only
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


@fake_only
@pytest.mark.long
def test_permanent_error_of_launchd_is_reported_and_rolled_back(mac: Mac) -> None:
    mac.inject_faults(bootstrap_eio=10_000)
    run = mac.install()

    assert 1 == run.returncode
    assert "Bootstrap failed: 5: Input/output error" in run.stderr
    assert "no known cause" in run.stderr
    assert "the installation was rolled back" in run.stderr
    assert not mac.plist.exists()


@fake_only
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


@fake_only
def test_session_without_a_screen_requires_headless_or_system() -> None:
    with macs.mac("user") as mac:
        run = mac.install()
        assert 1 == run.returncode
        assert "no domain gui/" in run.stderr
        assert "--headless" in run.stderr
        assert "--system" in run.stderr

        headless = mac.install("--headless")
        assert 0 == headless.returncode, headless.stderr
        assert "not at boot" in headless.stderr
        assert "Background" == plistlib.loads(mac.plist.read_bytes())["LimitLoadToSessionType"]
        assert ("headless", True) == (mac.service()["mode"], mac.service()["ready"])
        assert 0 == mac.ctl("uninstall").returncode
        assert not mac.plist.exists()


@fake_only
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
    wait_until(lambda: errors.exists() and "cannot import osaurusd" in errors.read_text())

    checks = json.loads(mac.run(new / "bin" / "python", "-m", "osaurusctl", "doctor", "--json", PYTHONPATH="").stdout)[
        "checks"
    ]
    (launcher,) = [check for check in checks if check["name"] == "launcher"]
    assert "failure" == launcher["verdict"]
    assert str(old) in launcher["found"]
    assert "osaurusctl install" in launcher["fix"]
    fixed = mac.run(new / "bin" / "python", "-m", "osaurusctl", "install", "--port", "0", PYTHONPATH="")
    assert 0 == fixed.returncode, fixed.stderr
    assert mac.service()["ready"]


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


def test_service_waits_while_another_program_uses_its_port(mac: Mac, occupied_port: int) -> None:
    """A 200 for `/health` from another program does not count as ready."""
    run = mac.install("--port", str(occupied_port), "--timeout", "1.5")
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


def test_service_serves_once_its_port_is_free(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        mac.install("--port", str(holder.getsockname()[1]), "--timeout", "0.5")
        wait_until(lambda: mac.socket.exists())
        pid = mac.service()["pid"]
    wait_until(lambda: is_serving(mac))

    assert (pid, 1) == (mac.service()["pid"], mac.service()["runs"])


@pytest.mark.long
def test_change_to_a_port_in_use_is_rolled_back(mac: Mac, occupied_port: int) -> None:
    assert 0 == mac.install().returncode
    before = mac.plist.read_bytes()
    run = mac.install("--port", str(occupied_port), "--timeout", "2")

    assert 1 == run.returncode
    assert "the previous service was restored" in run.stderr
    assert before == mac.plist.read_bytes()
    wait_until(lambda: is_serving(mac))


def test_service_recovers_from_an_invalid_configuration(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    config = mac.home / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    run = mac.ctl("restart", "--timeout", "2")
    assert 1 == run.returncode
    assert "server.prot" in run.stderr
    assert "server.prot" in mac.status()["faults"][0]
    assert (503, "not_serving") == (
        (answer := mac.admin("GET", "/v0/models"))[0],
        answer[1]["error"]["code"],
    )
    pid = mac.service()["pid"]

    config.write_text("")
    wait_until(lambda: is_serving(mac))
    assert pid == mac.service()["pid"]


def test_invalid_configuration_is_rejected_before_the_installation(mac: Mac) -> None:
    (mac.home / "config.toml").write_text("prot = 1\n")
    run = mac.install()

    assert 1 == run.returncode
    assert "prot" in run.stderr
    assert not mac.plist.exists()


@fake_only
def test_service_waits_for_another_daemon_with_the_same_home(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    env = {k: v for k, v in mac.env.items() if not k.startswith("OSAURUS_")}
    with daemons.running(mac.home, **{k: env[k] for k in ("HOME",)}) as other:
        mac.login()
        wait_until(lambda: mac.service()["running"])
        service = mac.service()
        assert not service["ready"]
        assert service["pid"] != other.process.pid == mac.status()["pid"]
        assert f"waiting for another osaurusd, pid {other.process.pid}" in mac.ctl("status").stdout
    wait_until(lambda: is_serving(mac))

    assert mac.service()["ready"]
    assert 1 == mac.service()["runs"]


def test_installation_replaces_a_daemon_that_up_started(mac: Mac) -> None:
    assert 0 == mac.ctl("up", "--port", "0").returncode
    before = mac.status()
    assert 0 == mac.install().returncode

    after = mac.status()
    assert before["instance"] != after["instance"]
    assert after["service"]["ready"]


def test_uninstall_keeps_models_and_configuration_unless_purged(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    (mac.home / "config.toml").write_text("")
    assert 0 == mac.ctl("uninstall").returncode
    assert not mac.plist.exists()
    assert not (mac.home / "bin" / "osaurusd").exists()
    assert 3 == mac.ctl("status").returncode
    assert (mac.home / "config.toml").exists()
    again = mac.ctl("uninstall")
    assert (1, True) == (again.returncode, "not installed" in again.stderr)

    assert 2 == mac.ctl("uninstall", "--purge").returncode
    assert 0 == mac.ctl("uninstall", "--purge", "--yes").returncode
    assert [] == list(mac.home.iterdir())


def test_dry_run_prints_file_and_steps_and_changes_nothing(mac: Mac) -> None:
    document = json.loads(mac.install("--dry-run", "--json").stdout)

    assert 0 == plistlib.loads(document["content"].encode())["EnvironmentVariables"]["OSAURUS_HOME"].find(str(mac.home))
    assert [f"launchctl enable {mac.target}" in step for step in document["steps"]][-1]
    assert not mac.plist.exists()
    assert not (mac.home / "bin").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--env", "HF_TOKEN=hf_abc"], {}, "HF_TOKEN looks like a secret"),
        (["--env", "nonsense"], {}, "KEY=VALUE"),
        (["--env", "OSAURUS_SUPERVISED=no"], {}, "the service sets it"),
        ([], {"HF_ENDPOINT": "https://me:word@hub.example"}, "HF_ENDPOINT looks like a secret"),
        ([], {"XPC_SERVICE_NAME": macs.LABEL}, "inside the service"),
        ([], {"OSAURUS_SERVICE_MANAGER": "none"}, "neither launchd nor systemd"),
    ],
)
def test_invalid_installation_is_rejected(mac: Mac, arguments: list[str], env: dict[str, str], message: str) -> None:
    run = mac.install(*arguments, **env)

    assert 1 == run.returncode
    assert message in run.stderr
    assert not mac.plist.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root")
def test_root_is_rejected(mac: Mac) -> None:
    run = mac.install(OSAURUS_ALLOW_ROOT="")

    assert 1 == run.returncode
    assert "as root" in run.stderr


def test_command_inside_the_service_cannot_stop_it(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    for verb in ("stop", "restart", "disable", "uninstall", "down"):
        run = mac.ctl(verb, OSAURUS_SUPERVISED="launchd")
        assert (1, True) == (run.returncode, "inside the service" in run.stderr), verb

    assert pid == mac.pid


@pytest.mark.long
def test_service_of_another_home_is_left_alone(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    other = mac.root / "other"
    for verb in ("install", "stop", "uninstall"):
        run = mac.ctl(verb, OSAURUS_HOME=str(other))
        assert 1 == run.returncode, verb
        assert "another home" in run.stderr or "not installed" in run.stderr
    assert 3 == mac.ctl("status", OSAURUS_HOME=str(other)).returncode
    assert mac.service()["ready"]


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


@fake_only
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
    assert not is_serving(mac)


@pytest.mark.skipif(sys.platform != "linux", reason="requires prlimit")
def test_service_continues_if_its_log_cannot_be_written(mac: Mac) -> None:
    import resource  # noqa: PLC0415 - prlimit exists only on Linux

    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    wait_until(lambda: mac.status()["faults"] != [])
    (fault,) = mac.status()["faults"]
    assert f"{mac.home}/logs/osaurusd.log" in fault
    assert mac.service()["ready"]

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: mac.status()["faults"] == [])


def test_doctor_finds_no_failure_in_a_healthy_service(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    run = mac.ctl("doctor", "--json", HF_ENDPOINT="http://127.0.0.1:9")
    document = json.loads(run.stdout)

    failures = [check for check in document["checks"] if check["verdict"] == "failure"]
    assert [] == failures
    assert 0 == run.returncode
    names = {check["name"] for check in document["checks"]}
    assert {"launcher", "service file", "job", "daemon", "port", "socket", "models", "hub", "disk"} <= names


def test_standard_error_file_is_truncated_at_the_next_start(mac: Mac) -> None:
    (mac.home / "logs").mkdir(mode=0o700)
    errors = mac.home / "logs" / "launchd.err.log"
    errors.write_bytes(b"old text!\n" * 200_000)
    assert 0 == mac.install().returncode

    assert 0 == errors.stat().st_size
    kept = errors.with_name("launchd.err.log.1")
    assert 2_000_000 == kept.stat().st_size
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)


@pytest.mark.long
def test_interrupted_installation_is_rolled_back(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        path = ["--env", f"PYTHONPATH={mac.env['PYTHONPATH']}"] if "PYTHONPATH" in mac.env else []
        process = subprocess.Popen(
            [macs.PROGRAMS / "osaurusctl", "install", "--port", str(port), *path],
            env=mac.env,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: mac.socket.exists())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)

    assert 130 == process.returncode
    assert "interrupted" in stderr
    assert not mac.plist.exists()
    assert 3 == mac.ctl("status").returncode
