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

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4}
PATIENCE_SECONDS = 30
ROOT = Path(__file__).parents[2]

only_stand_in = pytest.mark.skipif(macs.REAL, reason="the real launchd has no knobs, and nobody logs out for a test")


@pytest.fixture
def mac() -> Iterator[Mac]:
    """Somebody logged in at the screen."""
    with macs.mac("gui") as account:
        yield account


@pytest.fixture
def taken() -> Iterator[int]:
    """A port whose holder answers 200 to whatever it is asked, `/health` included."""

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def eventually(what: Callable[[], bool]) -> None:
    """Wait for what only another process can bring about."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def serving(mac: Mac) -> bool:
    try:
        return mac.admin("GET", "/v0/status")[1]["serving"]
    except OSError:
        return False


def post(mac: Mac, body: object) -> HTTPConnection:
    address = urlsplit(mac.status()["endpoints"][0])
    connection = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_SECONDS)
    connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_from_nothing_to_an_answered_chat(mac: Mac, smollm_folder: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", smollm_folder)
    run = mac.install()
    assert 0 == run.returncode, run.stderr

    facts = mac.service()
    assert [True] * 5 == [facts[name] for name in ("installed", "enabled", "loaded", "running", "ready")]
    assert [] == facts["drift"]
    assert 1 == facts["runs"]
    connection = post(mac, CHAT)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert "assistant" == answer["choices"][0]["message"]["role"]


def test_a_second_installation_leaves_file_and_daemon_alone(mac: Mac) -> None:
    """The file is its user's only to write, and runs the launcher."""
    assert 0 == mac.install("--env", "EXAMPLE=a & b").returncode
    pid = mac.pid
    again = mac.install("--env", "EXAMPLE=a & b")
    assert 0 == again.returncode
    assert f"osaurusd was installed already and runs (pid {pid})" == again.stdout.splitlines()[0]
    assert pid == mac.pid

    tree = plistlib.loads(mac.plist.read_bytes())
    assert 0o644 == stat.S_IMODE(mac.plist.stat().st_mode)
    assert [str(mac.home / "bin" / "osaurusd"), "serve", "--port", "0"] == tree["ProgramArguments"]
    assert "a & b" == tree["EnvironmentVariables"]["EXAMPLE"]
    assert str(mac.home) == tree["EnvironmentVariables"]["OSAURUS_HOME"]


@only_stand_in
def test_it_is_up_again_after_the_next_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    assert not serving(mac)
    mac.login()

    eventually(lambda: serving(mac))


def test_a_killed_daemon_comes_back(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: serving(mac) and mac.pid != pid)

    facts = mac.service()
    assert facts["ready"]
    assert 2 == facts["runs"]
    assert "9" in facts["last_exit"]


@only_stand_in
def test_stopped_lasts_until_started_or_the_next_login(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    stopped = mac.ctl("stop")
    assert 0 == stopped.returncode
    assert "`osaurusctl start` or the next login" in stopped.stderr
    facts = mac.service()
    assert (False, True) == (facts["loaded"], facts["enabled"])
    assert 0 == mac.ctl("start").returncode
    assert serving(mac)

    assert 0 == mac.ctl("stop").returncode
    mac.logout()
    mac.login()
    eventually(lambda: serving(mac))


@only_stand_in
def test_disabled_lasts_through_logins_and_a_start_is_for_once(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("disable").returncode
    mac.logout()
    mac.login()
    facts = mac.service()
    assert (False, False) == (facts["loaded"], facts["enabled"])

    started = mac.ctl("start")
    assert 0 == started.returncode
    assert "disabled" in started.stderr
    facts = mac.service()
    assert (True, False) == (facts["ready"], facts["enabled"])
    assert 0 == mac.ctl("enable").returncode
    assert mac.service()["enabled"]


@pytest.mark.long
def test_up_and_down_act_on_the_service(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    assert 0 == mac.ctl("down").returncode
    assert not mac.service()["loaded"]
    up = mac.ctl("up")

    assert 0 == up.returncode
    assert "the service is running" in up.stdout
    assert mac.service()["ready"]


@pytest.mark.long
def test_restart_lets_a_running_request_finish(mac: Mac, smollm_folder: Path) -> None:
    make_tiny(mac.home / "models" / "tiny", smollm_folder, eos_token_id=49151)
    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    connection = post(mac, {**CHAT, "max_tokens": 200, "stream": True})
    stream = connection.getresponse()
    stream.readline()
    restarted = mac.ctl("restart")

    assert 0 == restarted.returncode, restarted.stderr
    assert "[DONE]" in stream.read().decode()
    connection.close()
    assert mac.service()["ready"]
    assert pid != mac.service()["pid"]


def test_a_changed_file_under_load_loses_no_request(mac: Mac, smollm_folder: Path) -> None:
    """The old process drains after bootout has answered; until it is gone, bootstrap would fail."""
    make_tiny(mac.home / "models" / "tiny", smollm_folder, eos_token_id=49151)
    assert 0 == mac.install().returncode
    connection = post(mac, {**CHAT, "max_tokens": 200, "stream": True})
    stream = connection.getresponse()
    stream.readline()
    changed = mac.install("--env", "CHANGED=yes")

    assert 0 == changed.returncode, changed.stderr
    assert "[DONE]" in stream.read().decode()
    connection.close()
    assert mac.service()["ready"]
    assert b"CHANGED" in mac.plist.read_bytes()


@only_stand_in
def test_launchds_passing_troubles_are_sat_out(mac: Mac) -> None:
    """A label that was disabled once, EIO five times, and the words of older systems."""
    mac.launchctl("disable", mac.target)
    mac.faults(bootstrap_eio=5, old_print_disabled=True)
    first = mac.install()
    assert 0 == first.returncode, first.stderr
    assert (True, True) == ((facts := mac.service())["ready"], facts["enabled"])
    mac.faults(bootout_busy=1, bootstrap_busy=2)
    changed = mac.install("--env", "CHANGED=yes")

    assert 0 == changed.returncode, changed.stderr
    assert mac.service()["ready"]


@only_stand_in
@pytest.mark.long
def test_trouble_that_stays_is_named_and_leaves_nothing_behind(mac: Mac) -> None:
    mac.faults(bootstrap_eio=10_000)
    run = mac.install()

    assert 1 == run.returncode
    assert "Bootstrap failed: 5: Input/output error" in run.stderr
    assert "no cause that can be seen from here" in run.stderr
    assert "nothing was left installed" in run.stderr
    assert not mac.plist.exists()


@only_stand_in
def test_success_without_a_process_is_none_and_the_old_file_comes_back(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    before = mac.plist.read_bytes()
    mac.faults(no_process=True)
    run = mac.install("--env", "CHANGED=yes", "--timeout", "1")

    assert 1 == run.returncode
    assert "launchd has taken it, but no process runs" in run.stderr
    assert "the service before was restored and loaded" in run.stderr
    assert before == mac.plist.read_bytes()
    mac.faults()
    assert 0 == mac.ctl("restart").returncode


@only_stand_in
def test_without_a_screen_it_says_what_can_be_done() -> None:
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


@only_stand_in
def test_a_file_that_others_may_write_is_named_and_mended(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    mac.plist.chmod(0o664)
    mac.login()
    started = mac.ctl("start")
    assert 1 == started.returncode
    assert f"others may write to {mac.plist}: `chmod 644` it" in started.stderr
    assert "chmod 644" in mac.ctl("doctor").stdout

    assert 0 == mac.install().returncode
    assert mac.service()["ready"]


def test_a_moved_environment_is_named_and_mended(mac: Mac) -> None:
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
    eventually(lambda: errors.exists() and "cannot import osaurusd" in errors.read_text())

    checks = json.loads(mac.run(new / "bin" / "python", "-m", "osaurusctl", "doctor", "--json", PYTHONPATH="").stdout)[
        "checks"
    ]
    (launcher,) = [check for check in checks if check["name"] == "launcher"]
    assert "failure" == launcher["verdict"]
    assert str(old) in launcher["found"]
    assert "osaurusctl install" in launcher["fix"]
    mended = mac.run(new / "bin" / "python", "-m", "osaurusctl", "install", "--port", "0", PYTHONPATH="")
    assert 0 == mended.returncode, mended.stderr
    assert mac.service()["ready"]


def test_what_only_this_shell_can_import_is_not_installed(mac: Mac) -> None:
    """A service does not have the shell's PYTHONPATH."""
    bare = mac.root / "venv"
    venv.create(bare, symlinks=True)
    paths = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    arguments = ["-m", "osaurusctl", "install", "--port", "0", "--timeout", "1"]
    run = mac.run(bare / "bin" / "python", *arguments, PYTHONPATH=paths)

    assert 1 == run.returncode
    assert f"{bare}/bin/python cannot import osaurusd" in run.stderr
    assert "nothing was left installed" in run.stderr
    assert not (mac.home / "bin").exists()


def test_a_stranger_on_the_port_is_named_and_sat_out(mac: Mac, taken: int) -> None:
    """Its 200 for `/health` is not ours."""
    run = mac.install("--port", str(taken), "--timeout", "1.5")
    assert 1 == run.returncode
    assert f"port {taken}: Address already in use" in run.stderr
    assert f"(pid {os.getpid()}) holds it" in run.stderr
    assert "stays installed" in run.stderr

    status = mac.status()
    assert not status["serving"]
    assert str(os.getpid()) in status["faults"][0]
    assert (True, False) == (status["service"]["running"], status["service"]["ready"])
    assert 1 == mac.ctl("doctor").returncode
    assert 1 == mac.service()["runs"]


def test_a_port_that_comes_free_is_taken(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        mac.install("--port", str(holder.getsockname()[1]), "--timeout", "0.5")
        eventually(lambda: mac.socket.exists())
        pid = mac.service()["pid"]
    eventually(lambda: serving(mac))

    assert (pid, 1) == (mac.service()["pid"], mac.service()["runs"])


@pytest.mark.long
def test_a_change_to_a_port_that_is_held_is_taken_back(mac: Mac, taken: int) -> None:
    assert 0 == mac.install().returncode
    before = mac.plist.read_bytes()
    run = mac.install("--port", str(taken), "--timeout", "2")

    assert 1 == run.returncode
    assert "the service before was restored and loaded" in run.stderr
    assert before == mac.plist.read_bytes()
    eventually(lambda: serving(mac))


def test_a_bad_configuration_is_waited_out(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    config = mac.home / "config.toml"
    config.write_text("[server]\nprot = 1\n")
    run = mac.ctl("restart", "--timeout", "2")
    assert 1 == run.returncode
    assert "unknown key `server.prot`; did you mean `server.port`?" in run.stderr
    assert "`server.prot`" in mac.status()["faults"][0]
    assert (503, "not_serving") == (
        (answer := mac.admin("GET", "/v0/models"))[0],
        answer[1]["error"]["code"],
    )
    pid = mac.service()["pid"]

    config.write_text("")
    eventually(lambda: serving(mac))
    assert pid == mac.service()["pid"]


def test_a_bad_configuration_is_refused_before_anything_is_installed(mac: Mac) -> None:
    (mac.home / "config.toml").write_text("prot = 1\n")
    run = mac.install()

    assert 1 == run.returncode
    assert "unknown key `prot`" in run.stderr
    assert not mac.plist.exists()


@only_stand_in
def test_a_home_that_another_daemon_has_is_waited_for(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.logout()
    env = {k: v for k, v in mac.env.items() if not k.startswith("OSAURUS_")}
    with daemons.running(mac.home, **{k: env[k] for k in ("HOME",)}) as other:
        mac.login()
        eventually(lambda: mac.service()["running"])
        facts = mac.service()
        assert not facts["ready"]
        assert facts["pid"] != other.process.pid == mac.status()["pid"]
        assert f"another osaurusd, pid {other.process.pid}, has the home" in mac.ctl("status").stdout
    eventually(lambda: serving(mac))

    assert mac.service()["ready"]
    assert 1 == mac.service()["runs"]


def test_a_daemon_that_up_started_is_handed_over(mac: Mac) -> None:
    assert 0 == mac.ctl("up", "--port", "0").returncode
    before = mac.status()
    assert 0 == mac.install().returncode

    after = mac.status()
    assert before["instance"] != after["instance"]
    assert after["service"]["ready"]


def test_uninstalled_leaves_models_and_settings(mac: Mac) -> None:
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


def test_a_dry_run_shows_file_and_steps_and_does_nothing(mac: Mac) -> None:
    document = json.loads(mac.install("--dry-run", "--json").stdout)

    assert 0 == plistlib.loads(document["content"].encode())["EnvironmentVariables"]["OSAURUS_HOME"].find(str(mac.home))
    assert [f"launchctl enable {mac.target}" in step for step in document["steps"]][-1]
    assert not mac.plist.exists()
    assert not (mac.home / "bin").exists()


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--env", "HF_TOKEN=hf_abc"], {}, "HF_TOKEN looks like a secret"),
        (["--env", "nonsense"], {}, "KEY=VALUE"),
        (["--env", "OSAURUS_SUPERVISED=no"], {}, "set by the service itself"),
        ([], {"HF_ENDPOINT": "https://me:word@hub.example"}, "HF_ENDPOINT looks like a secret"),
        ([], {"XPC_SERVICE_NAME": macs.LABEL}, "inside the service"),
        ([], {"OSAURUS_SERVICE_MANAGER": "none"}, "neither launchd nor systemd"),
    ],
)
def test_what_cannot_be_installed_is_refused(mac: Mac, arguments: list[str], env: dict[str, str], words: str) -> None:
    run = mac.install(*arguments, **env)

    assert 1 == run.returncode
    assert words in run.stderr
    assert not mac.plist.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused for being root")
def test_root_is_refused(mac: Mac) -> None:
    run = mac.install(OSAURUS_ALLOW_ROOT="")

    assert 1 == run.returncode
    assert "this is root" in run.stderr


def test_no_command_ends_the_service_it_runs_in(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    pid = mac.pid
    for verb in ("stop", "restart", "disable", "uninstall", "down"):
        run = mac.ctl(verb, OSAURUS_SUPERVISED="launchd")
        assert (1, True) == (run.returncode, "inside the service" in run.stderr), verb

    assert pid == mac.pid


@pytest.mark.long
def test_another_homes_service_is_left_alone(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    other = mac.root / "other"
    for verb in ("install", "stop", "uninstall"):
        run = mac.ctl(verb, OSAURUS_HOME=str(other))
        assert 1 == run.returncode, verb
        assert "another home" in run.stderr or "not installed" in run.stderr
    assert 3 == mac.ctl("status", OSAURUS_HOME=str(other)).returncode
    assert mac.service()["ready"]


@pytest.mark.long
def test_drift_is_told_and_a_restart_loads_the_file(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    tree = plistlib.loads(mac.plist.read_bytes())
    mac.plist.write_bytes(plistlib.dumps({**tree, "ExitTimeOut": 40}))
    assert [
        "the file is not what this version writes: ExitTimeOut",
        "the loaded job is not what the file says: exit timeout",
    ] == mac.service()["drift"]
    assert "ExitTimeOut" in mac.ctl("doctor").stdout

    assert 0 == mac.ctl("restart").returncode
    assert ["the file is not what this version writes: ExitTimeOut"] == mac.service()["drift"]
    assert 0 == mac.install().returncode
    assert [] == mac.service()["drift"]


@only_stand_in
def test_a_loaded_job_without_its_file_is_seen_and_can_be_removed(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    mac.plist.unlink()
    facts = mac.service()
    assert (False, True, ["it is loaded, but its file is gone"]) == (
        facts["installed"],
        facts["loaded"],
        facts["drift"],
    )

    assert 0 == mac.ctl("uninstall").returncode
    assert not serving(mac)


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is there on Linux only")
def test_a_log_that_cannot_be_written_costs_no_service(mac: Mac) -> None:
    import resource  # noqa: PLC0415  prlimit is there on Linux only

    assert 0 == mac.install().returncode
    pid = mac.service()["pid"]
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    eventually(lambda: mac.status()["faults"] != [])
    (fault,) = mac.status()["faults"]
    assert f"cannot write the log {mac.home}/logs/osaurusd.log" in fault
    assert mac.service()["ready"]

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    eventually(lambda: mac.status()["faults"] == [])


def test_doctor_is_content_with_a_healthy_service(mac: Mac) -> None:
    assert 0 == mac.install().returncode
    run = mac.ctl("doctor", "--json", HF_ENDPOINT="http://127.0.0.1:9")
    document = json.loads(run.stdout)

    failures = [check for check in document["checks"] if check["verdict"] == "failure"]
    assert [] == failures
    assert 0 == run.returncode
    names = {check["name"] for check in document["checks"]}
    assert {"launcher", "service file", "job", "daemon", "port", "socket", "models", "hub", "disk"} <= names


def test_what_it_prints_is_bounded_at_the_next_start(mac: Mac) -> None:
    (mac.home / "logs").mkdir(mode=0o700)
    errors = mac.home / "logs" / "launchd.err.log"
    errors.write_bytes(b"old words\n" * 200_000)
    assert 0 == mac.install().returncode

    assert 0 == errors.stat().st_size
    kept = errors.with_name("launchd.err.log.1")
    assert 2_000_000 == kept.stat().st_size
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)


@pytest.mark.long
def test_an_installation_that_is_interrupted_takes_itself_back(mac: Mac) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        path = ["--env", f"PYTHONPATH={mac.env['PYTHONPATH']}"] if "PYTHONPATH" in mac.env else []
        process = subprocess.Popen(
            [macs.PROGRAMS / "osaurusctl", "install", "--port", str(port), *path],
            env=mac.env,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually(lambda: mac.socket.exists())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_SECONDS)

    assert 130 == process.returncode
    assert "interrupted" in stderr
    assert not mac.plist.exists()
    assert 3 == mac.ctl("status").returncode
