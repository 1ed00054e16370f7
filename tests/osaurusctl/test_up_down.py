"""`up` and `down` with a real process."""

import json
import os
import signal
import stat
import subprocess
import sys


def test_up_starts_a_daemon_and_down_stops_it(ctl, fake_program, home):
    up = ctl("up", "--host", "127.0.0.1", "--port", "9000", "--insecure")
    assert up.returncode == 0, up.stderr
    started = fake_program()
    assert started["argv"] == ["serve", "--host", "127.0.0.1", "--port", "9000", "--insecure"]
    assert started["supervised"] == "up"
    assert started["own_session"]
    assert started["stdin_is_null"]
    assert up.stdout.splitlines() == [
        f"osaurusd is running (pid {started['pid']})",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        f"log: {home}/logs/osaurusd.log",
    ]
    down = ctl("down")
    assert (down.returncode, down.stdout) == (0, f"osaurusd (pid {started['pid']}) stopped\n")
    again = ctl("down")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "osaurusd is not running\n")
    assert json.loads(ctl("down", "--json").stdout) == {"pid": None}


def test_up_and_down_print_json(ctl, fake_program, home):
    document = json.loads(ctl("up", "--json").stdout)
    assert document == {
        "started": True,
        "pid": fake_program()["pid"],
        "endpoints": ["http://127.0.0.1:8080", "http://[::1]:8080"],
        "log_file": f"{home}/logs/osaurusd.log",
    }
    assert json.loads(ctl("--json", "down").stdout) == {"pid": document["pid"]}


def test_up_reports_a_running_daemon(daemon, invoke):
    result = invoke("up")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"osaurusd is already running (pid {daemon.pid})\nhttp://127.0.0.1:8080\n")
    assert json.loads(invoke("up", "--json").stdout)["started"] is False


def test_up_accepts_a_running_daemon_of_another_version(daemon, invoke):
    daemon.api = "2"
    assert invoke("up").exit_code == 0


def test_up_shows_the_stderr_of_a_daemon_that_exits(ctl, fake_program, home, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "exit")
    log = home / "logs" / "osaurusd.stderr.log"
    log.parent.mkdir()
    log.write_text("output of an earlier run\n")
    result = ctl("up")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "error: osaurusd exited during startup with code 2",
        "  config.toml: unknown key `prot`",
    ]
    assert log.read_text() == "output of an earlier run\nconfig.toml: unknown key `prot`\n"


def test_up_times_out(ctl, fake_program, monkeypatch, home):
    monkeypatch.setenv("FAKE_MODE", "never ready")
    os.mkfifo(home / "alive")
    result = ctl("up", "--timeout", "0.5", "--json")
    (home / "alive").open().close()  # Waits until the process has written the record that the fixture reads.
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "start_timeout"
    assert "(pid " in result.stderr
    assert "after 0.5 s" in result.stderr


def test_interrupted_up_terminates_the_daemon(spawn, fake_program, monkeypatch, home):
    monkeypatch.setenv("FAKE_MODE", "never ready")
    os.mkfifo(home / "alive")
    process = spawn("up")
    with (home / "alive").open() as alive:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"interrupted" in stderr
        assert alive.read() == ""


def test_log_files_of_up_are_private(ctl, fake_program, home):
    assert ctl("up").returncode == 0
    assert stat.S_IMODE((home / "logs").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "logs" / "osaurusd.stderr.log").stat().st_mode) == 0o600
    assert ctl("down").returncode == 0


def test_up_does_not_import_from_the_current_directory(ctl, fake_program, home):
    (home / "osaurusd.py").write_text("raise SystemExit('this must not run')\n")
    (home / "msgspec.py").write_text("raise SystemExit('this must not run')\n")
    script = "from osaurusctl.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-P", "-c", script, "up"], cwd=home, check=False, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert ctl("down", cwd="/").returncode == 0


def test_down_waits_until_the_process_has_exited(ctl, fake_program, home, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "slow to stop")
    assert ctl("up").returncode == 0
    assert ctl("down").returncode == 0
    assert not (home / "run" / "admin.sock").exists()


def test_down_reports_a_daemon_that_does_not_exit(daemon, invoke):
    daemon.release_lock_on_shutdown = False
    result = invoke("down", "--timeout", "0.1")
    assert result.exit_code == 1
    assert f"osaurusd (pid {daemon.pid}) is still running after 0.1 s" in result.stderr


def test_down_waits_for_a_daemon_that_is_already_stopping(daemon, invoke, home):
    daemon.server.shutdown()
    daemon.server.server_close()
    result = invoke("down", "--timeout", "0.1")
    assert result.exit_code == 1
    assert f"(pid {daemon.pid})" in result.stderr
    daemon.release_lock()
    assert invoke("down").exit_code == 0
