"""Error messages, hints and exit codes."""

import json
import os
import subprocess
import sys

import pytest

from osaurusctl import client
from osaurusctl.errors import EXIT_CODES, HINTS, ExitCode, error_from_body
from osaurusd.wire.admin import API_HEADER, Route
from osaurusd.wire.errors import ErrorBody, ErrorCode

DAEMON_COMMANDS = [
    ["status"],
    ["ls"],
    ["ps"],
    ["load", "llama"],
    ["unload", "llama"],
    ["unload", "--all"],
    ["import", "."],
    ["run", "llama", "hello"],
    ["show", "llama"],
    ["rm", "llama", "--yes"],
    ["verify", "llama"],
    ["prune", "--yes"],
    ["alias"],
    ["alias", "fast", "llama"],
    ["alias", "--rm", "fast"],
    ["reload"],
]


@pytest.mark.parametrize("command", DAEMON_COMMANDS, ids=" ".join)
def test_error_without_a_daemon_names_the_command_that_starts_it(run, command):
    result = run(*command)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr == 'error: osaurusd is not running; run "osaurusctl up" to start it\n'


@pytest.mark.parametrize("command", DAEMON_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("place", ["before", "after"])
def test_json_output_without_a_daemon_contains_the_error(invoke, home, command, place):
    result = invoke(*(["--json", *command] if place == "before" else [*command, "--json"]))
    assert result.exit_code == 3
    assert json.loads(result.stdout)["error"]["code"] == "daemon_not_running"
    assert "not running" in result.stderr


def test_stale_socket_means_that_no_daemon_runs(daemon, invoke):
    daemon.server.shutdown()
    daemon.server.server_close()
    assert invoke("status").exit_code == 3


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_maps_to_an_exit_code(code):
    expected = {
        "model_not_found": 4,
        "model_not_downloaded": 4,
        "insufficient_memory": 5,
        "version_mismatch": 6,
    }
    assert error_from_body(ErrorBody(message="m", type="t", code=code)).exit_code == expected.get(code, 1)


def test_unknown_error_code_of_a_newer_daemon_exits_with_1():
    for code in ("from_the_future", None):
        assert error_from_body(ErrorBody(message="m", type="t", code=code)).exit_code == ExitCode.FAILURE


def test_every_hint_names_a_command_in_quotes():
    assert EXIT_CODES.keys() <= HINTS.keys()
    assert all(hint.count('"') % 2 == 0 and '"osaurusctl ' in hint for hint in HINTS.values())


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("model_not_found", 4), ("model_not_downloaded", 4), ("insufficient_memory", 5), ("busy", 1)],
)
def test_daemon_error_is_shown_with_its_hint_and_exit_code(daemon, run, code, exit_code):
    daemon.fail(Route.LOAD, code, "the load failed")
    result = run("load", "llama")
    assert result.returncode == exit_code
    assert result.stdout == ""
    assert result.stderr.splitlines() == ["error: the load failed", f"hint: {HINTS[code]}"]


def test_json_error_is_one_document_besides_the_error_line(daemon, run):
    daemon.fail(Route.LOAD, "model_not_found", "no model `llama`")
    result = run("load", "llama", "--json")
    assert result.returncode == 4
    assert json.loads(result.stdout) == {
        "error": {
            "message": "no model `llama`",
            "type": "invalid_request_error",
            "param": None,
            "code": "model_not_found",
        }
    }
    assert result.stderr.startswith("error: no model `llama`\n")


def test_further_lines_of_an_error_message_are_indented(daemon, invoke):
    daemon.fail(Route.LOAD, "worker_crashed", "the worker ended\nline 1\nline 2", status=502)
    assert invoke("load", "llama").stderr.splitlines()[:3] == ["error: the worker ended", "  line 1", "  line 2"]


@pytest.mark.parametrize(
    "args",
    [
        ["load"],
        ["nonsense"],
        ["ls", "--nonsense"],
        ["up", "--port", "70000"],
        ["completion", "tcsh"],
        ["run", "llama", "hi", "--temperature", "3"],
        ["import", "/nowhere/at/all"],
        ["rm"],
        ["rm", "llama"],
        ["prune"],
        ["ls", "--sort", "colour"],
        ["ls", "--state", "asleep"],
        ["alias", "fast"],
        ["alias", "fast", "llama", "--rm", "fast"],
        ["config", "nonsense"],
        ["config", "set", "server.port"],
    ],
    ids=" ".join,
)
def test_usage_error_exits_with_2_and_names_the_help(invoke, args):
    result = invoke(*args)
    assert result.exit_code == 2
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.endswith(' --help" for usage')
    assert result.stdout == ""


@pytest.mark.parametrize(
    "args", [["load", "--json"], ["--json", "load"], ["ls", "--nonsense", "--json"], ["x", "--json"]]
)
def test_usage_error_is_json_with_the_json_option(invoke, args):
    result = invoke(*args)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "usage"


def test_json_after_a_double_dash_is_an_argument(invoke):
    result = invoke("ps", "--", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""


def test_missing_command_shows_the_help_and_exits_with_2(invoke):
    result = invoke()
    assert result.exit_code == 2
    assert "Running:" in result.stderr


@pytest.mark.parametrize("api", ["0", "2"])
@pytest.mark.parametrize(
    "command",
    [
        *(["ls"], ["ps"], ["load", "a"], ["unload", "a"], ["import", "."], ["run", "a"], ["run"], ["show", "a"]),
        *(["rm", "a", "--yes"], ["verify", "a"], ["prune", "--yes"], ["alias"], ["alias", "b", "a"], ["reload"]),
    ],
)
def test_other_api_version_of_the_daemon_exits_with_6(daemon, invoke, home, command, api):
    daemon.api, daemon.version = api, "9.9.9"
    result = invoke(*command, input="a prompt")
    assert result.exit_code == 6
    error, hint = result.stderr.splitlines()
    assert "osaurusd 9.9.9" in error
    assert "osaurusctl restart" in hint


def test_status_412_without_version_headers_exits_with_6(daemon, invoke):
    daemon.fail(Route.MODELS, "version_mismatch", "restart osaurusd", status=412)
    result = invoke("ls")
    assert result.exit_code == 6
    assert result.stderr.startswith("error: restart osaurusd\n")


@pytest.mark.parametrize("rejects", [True, False])
def test_status_version_and_down_work_across_versions(daemon, invoke, rejects):
    daemon.api, daemon.version, daemon.reject_every_other_version = "2", "9.9.9", rejects
    assert invoke("status").exit_code == 0
    assert json.loads(invoke("version", "--json").stdout)["daemon"]["api_version"] == 2
    assert invoke("down").exit_code == 0
    assert daemon.stopping.is_set()


def test_status_shows_the_fields_that_another_version_shares(daemon, invoke):
    daemon.api = "2"
    daemon.status_override = {"workers": "three", "uptime_seconds": {"s": 1}, "version": "9.9.9"}
    result = invoke("status", "--json")
    assert result.exit_code == 0
    status = json.loads(result.stdout)
    assert (status["version"], status["workers"], status["pid"]) == ("9.9.9", [], daemon.pid)


def test_every_request_has_the_host_and_api_version_headers(daemon, invoke):
    for command in (["status"], ["load", "a"], ["run", "a", "hi"]):
        invoke(*command)
    assert len(daemon.requests) >= 3
    assert all(request.headers[API_HEADER] == "1" for request in daemon.requests)
    assert all(request.headers["Host"] == "osaurusd" for request in daemon.requests)
    posts = [request.headers for request in daemon.requests if request.method == "POST"]
    assert all(headers["Content-Type"] == "application/json" for headers in posts)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{x}",
        b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n[{"name": 123}]',
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[",
    ],
)
def test_malformed_reply_is_an_error_without_a_traceback(daemon, run, raw):
    daemon.raw = {Route.MODELS: raw}
    result = run("ls")
    assert result.returncode == 1
    assert result.stderr.startswith("error: invalid reply from osaurusd: ")
    assert "Traceback" not in result.stderr


def test_daemon_that_does_not_answer_times_out(daemon, monkeypatch, invoke):
    monkeypatch.setattr(client, "TIMEOUT_SECONDS", 0.05)
    daemon.server.shutdown()
    result = invoke("status")
    assert result.exit_code == 1
    assert "timed out" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to another user")
def test_socket_of_another_user_is_a_permission_error(daemon, home):
    home.chmod(0o755)
    script = (
        "import os, osaurusctl.cli, osaurusctl.commands.status\n"
        "os.setuid(65534)\n"
        "osaurusctl.cli.root.main(['status'])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1
    assert f"permission denied for the socket {home}/run/admin.sock" in result.stderr
    assert "Traceback" not in result.stderr


def test_permission_error_has_a_hint(invoke, monkeypatch):
    def deny(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("osaurusctl.unix_connection.UnixConnection.connect", deny)
    result = invoke("ls")
    assert result.exit_code == 1
    assert "permission denied for the socket" in result.stderr
    assert "hint: " in result.stderr


def test_socket_path_that_is_too_long_is_an_error_with_the_limit(run, monkeypatch):
    monkeypatch.setenv("OSAURUS_HOME", "/tmp/" + "x" * 120)
    for command in ("status", "version", "up"):
        result = run(command)
        assert result.returncode == 1
        assert "103" in result.stderr
        assert "Traceback" not in result.stderr


def test_home_that_cannot_be_written_is_named(run, home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("OSAURUS_HOME", str(home / "file"))
    result = run("up")
    assert result.returncode == 1
    assert result.stderr.count("\n") <= 2
    assert str(home / "file") in result.stderr


def test_argument_that_is_not_utf8_is_an_error(daemon, ctl):
    result = ctl("run", "llama", b"\xff\xfe")
    assert result.returncode == 1
    assert "not valid UTF-8" in result.stderr
    assert "Traceback" not in result.stderr


def test_closed_pipe_ends_the_command_without_a_message(daemon, spawn, fake):
    daemon.models = [fake.model(f"model-{number}") for number in range(5000)]
    process = spawn("ls")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


def test_pipe_that_is_closed_from_the_start_does_not_hide_the_error(home, spawn):
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("ls", "--json", stdout=writing)
    os.close(writing)
    _, stderr = process.communicate(timeout=60)
    assert stderr == b'error: osaurusd is not running; run "osaurusctl up" to start it\n'
    assert process.returncode == 3


def test_closed_standard_streams_are_ignored(daemon):
    command = f"exec {sys.executable} -m osaurusctl ls <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False, cwd=daemon.home, timeout=120).returncode == 0
