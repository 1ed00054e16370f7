"""`config` works without a daemon and never leaves an invalid or incomplete file."""

import json
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from osaurusd.config import ENVIRONMENT, known_keys

WRITTEN = """\
# My daemon.
default_model = "llama"   # the small one

# What clients connect to.
[server]
port    = 8081  # 8080 is taken
allowed_hosts = [
    "a.example",  # the proxy
    "b.example",
]

[log]
level = 'debug'
"""


@pytest.fixture(autouse=True)
def no_overrides(monkeypatch):
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def path(home):
    return home / "config.toml"


@pytest.fixture
def file(path):
    path.write_text(WRITTEN)
    return path


def test_path_prints_the_path_even_if_the_file_does_not_exist(invoke, path):
    assert invoke("config", "path").stdout == f"{path}\n"
    assert json.loads(invoke("config", "path", "--json").stdout) == {"path": str(path), "exists": False}


@pytest.mark.parametrize("place", [["--json", "config", "path"], ["config", "--json", "path"]], ids=" ".join)
def test_json_option_is_accepted_anywhere(invoke, path, place):
    assert json.loads(invoke(*place).stdout)["path"] == str(path)


def test_check_accepts_a_valid_file(invoke, file):
    result = invoke("config", "check")
    assert (result.exit_code, result.stdout) == (0, f"{file} is valid\n")
    assert json.loads(invoke("config", "check", "--json").stdout) == {"path": str(file), "exists": True}


def test_check_accepts_a_missing_file(invoke, path):
    result = invoke("config", "check")
    assert (result.exit_code, result.stdout) == (0, f"{path} does not exist; the defaults apply\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1\n", "`server.prot`"),
        ("[server]\nport = 'x'\n", "`server.port`"),
        ("[server\n", "line 1"),
        (b"\xff", "utf-8"),
    ],
)
def test_check_reports_what_is_invalid(invoke, path, text, message):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = invoke("config", "check")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: ")
    assert message in result.stderr
    assert json.loads(invoke("config", "check", "--json").stdout)["error"]["code"] == "config_error"


def test_check_names_an_invalid_variable(invoke, file, monkeypatch):
    monkeypatch.setenv("OSAURUS_PORT", "many")
    error = invoke("config", "check").stderr
    assert "OSAURUS_PORT" in error
    assert "`server.port`" in error


def test_get_lists_every_key_with_its_source(invoke, file, monkeypatch):
    monkeypatch.setenv("OSAURUS_LOG_LEVEL", "error")
    result = invoke("config", "get")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    shown = {key: " ".join(rest.split()) for key, rest in lines}
    assert list(shown) == ["KEY", *known_keys()]
    assert shown["KEY"] == "VALUE SOURCE"
    assert shown["default_model"] == '"llama" file'
    assert shown["server.host"] == '"localhost" default'
    assert shown["server.port"] == "8081 file"
    assert shown["server.allowed_hosts"] == '["a.example", "b.example"] file'
    assert shown["defaults.temperature"] == "0.0 default"
    assert shown["defaults.max_tokens"] == "none default"
    assert shown["log.level"] == '"error" environment (OSAURUS_LOG_LEVEL)'


def test_get_json_is_a_list_of_settings(invoke, file):
    settings = {each["key"]: each for each in json.loads(invoke("config", "get", "--json").stdout)}
    assert settings["server.port"] == {"key": "server.port", "value": 8081, "source": "file", "variable": None}
    assert settings["defaults.max_tokens"]["value"] is None


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("default_model", "llama"),
        ("server.port", "8081"),
        ("server.allowed_hosts", '["a.example", "b.example"]'),
        ("server.host", "localhost"),
    ],
)
def test_get_of_one_key_prints_only_the_value(invoke, file, key, shown):
    result = invoke("config", "get", key)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{shown}\n", "")


def test_get_of_an_unset_key_prints_nothing_on_standard_output(invoke, path):
    result = invoke("config", "get", "default_model")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "default_model is not set\n")
    assert json.loads(invoke("config", "get", "default_model", "--json").stdout)["value"] is None


def test_get_reports_a_variable_that_overrides_the_file(invoke, file, monkeypatch):
    monkeypatch.setenv("OSAURUS_PORT", "9000")
    result = invoke("config", "get", "server.port")
    assert result.stdout == "9000\n"
    assert result.stderr == "the environment variable OSAURUS_PORT overrides the file\n"
    document = json.loads(invoke("config", "get", "server.port", "--json").stdout)
    assert (document["source"], document["variable"]) == ("environment", "OSAURUS_PORT")


@pytest.mark.parametrize("command", ["get", "unset"])
@pytest.mark.parametrize(("key", "hint"), [("server.prot", "; did you mean `server.port`?"), ("zzz", ""), ("", "")])
def test_unknown_key_is_an_error_with_a_suggestion(invoke, file, command, key, hint):
    result = invoke("config", command, key)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: unknown key `{key}`{hint}\n"
    assert file.read_text() == WRITTEN


@pytest.mark.parametrize(
    ("key", "value", "before", "after"),
    [
        ("default_model", "qwen", '"llama"   # the small one', '"qwen"   # the small one'),
        ("server.port", "8082", "port    = 8081  # 8080 is taken", "port    = 8082  # 8080 is taken"),
        ("log.level", "info", "level = 'debug'", 'level = "info"'),
        ("log.level", "'info'", "level = 'debug'", "level = 'info'"),
        ("server.host", "0.0.0.0", '    "b.example",\n]\n', '    "b.example",\n]\nhost = "0.0.0.0"\n'),
        ("defaults.top_p", "0.5", "level = 'debug'\n", "level = 'debug'\n\n[defaults]\ntop_p = 0.5\n"),
    ],
)
def test_set_changes_only_one_value(invoke, file, key, value, before, after):
    result = invoke("config", "set", key, value)
    assert (result.exit_code, result.stderr) == (0, "")
    assert WRITTEN.count(before) == 1
    assert file.read_text() == WRITTEN.replace(before, after)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("default_model", "llama-3.2-3b-instruct", "llama-3.2-3b-instruct"),
        ("default_model", '"quoted"', "quoted"),
        ("default_model", "123", "123"),
        ("default_model", "true", "true"),
        ("default_model", "2024-01-01", "2024-01-01"),
        ("default_model", "[a]", "[a]"),
        ("default_model", 'a"b\\c', 'a"b\\c'),
        ("default_model", "a\nb = 1", "a\nb = 1"),
        ("default_model", "", ""),
        ("server.port", "8081", 8081),
        ("server.port", " 8081 ", 8081),
        ("default_for_unknown", "true", True),
        ("server.shutdown_grace_seconds", "3", 3),
        ("server.allowed_origins", '["https://a.example"]', ["https://a.example"]),
        ("worker.blas", "/usr/lib/libopenblas.so", "/usr/lib/libopenblas.so"),
        ("residency.budget_bytes", "8GB", 8 * 10**9),
        ("residency.budget_bytes", "1.5 GiB", 3 * 2**29),
        ("residency.keep_alive_seconds", "15m", 900),
        ("residency.keep_alive_seconds", "-1", -1),
        ("models.roots", "/models/模型", ["/models/模型"]),
        ("server.allowed_origins", "https://a.example", ["https://a.example"]),
    ],
)
def test_value_is_parsed_as_toml_or_taken_as_a_string(invoke, path, key, text, value):
    result = invoke("config", "set", key, text, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"path": str(path), "key": key, "value": value}
    assert json.loads(invoke("config", "get", key, "--json").stdout)["value"] == value


def test_set_prints_the_new_value(invoke, path):
    assert invoke("config", "set", "default_model", "qwen").stdout == 'default_model = "qwen"\n'
    assert path.read_text() == 'default_model = "qwen"\n'


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("server.prot", "1", "`server.prot`"),
        ("nonsense.key", "1", "`nonsense`"),
        ("server.port", "99999", "expected an integer <= 65535"),
        ("server.port", "many", "expected an integer, got a string"),
        ("server.allowed_hosts", "[a.example", "expected a list, got a string"),
        ("server.insecure", "1", "expected true or false, got an integer"),
        ("limits.body_seconds", "2d", "expected a number <= 86400"),
        ("residency.budget_bytes", "8XB", "a size such as 512MB"),
        ("residency.keep_alive_seconds", "soon", "a duration such as 90s"),
        ("log.level", "loud", 'invalid value "loud"; expected one of debug, info'),
        ("server", "5", "expected a table, got an integer"),
        ("server.port.x", "5", "`port` is not a table"),
        ("default_model.x.y", "5", "`default_model` is not a table"),
        ("server.", "5", "`server.`"),
    ],
)
def test_invalid_change_leaves_the_file_unchanged(invoke, file, key, value, message):
    before = file.stat()
    result = invoke("config", "set", key, value)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {file}: ")
    assert message in result.stderr
    assert (file.read_text(), file.stat().st_ino) == (WRITTEN, before.st_ino)
    assert list(file.parent.iterdir()) == [file]


def test_set_rejects_a_file_that_is_not_toml(invoke, path):
    path.write_text("[server\nport = 1\n")
    result = invoke("config", "set", "server.port", "1")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {path}: ")
    assert path.read_text() == "[server\nport = 1\n"


def test_set_ignores_an_invalid_variable(invoke, path, monkeypatch):
    monkeypatch.setenv("OSAURUS_PORT", "many")
    result = invoke("config", "set", "server.port", "1234")
    assert result.exit_code == 0
    assert result.stderr == "the environment variable OSAURUS_PORT overrides the file\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# about the server\n[server]\nport = 1\n", "X\n\n# about the server\n[server]\nport = 1\n"),
        ("# all\n\n# server\n[server]\n", "X\n\n# server\n[server]\n"),
        ("# all of it\n", "# all of it\nX\n"),
        ("server.port = 1\n\n[log]\n", "server.port = 1\nX\n\n[log]\n"),
    ],
)
def test_new_first_key_is_not_inserted_between_a_comment_and_its_table(invoke, path, before, after):
    path.write_text(before)
    assert invoke("config", "set", "default_model", "qwen").exit_code == 0
    expected = after.replace("X", 'default_model = "qwen"')
    assert path.read_text() == ("# all\n\n" if before.startswith("# all\n") else "") + expected


@pytest.mark.parametrize("before", ["# note", 'default_model = "a"', "[log]\nlevel = 'info'", "[log]\n\n", "\n"])
def test_new_table_is_separated_by_a_blank_line(invoke, path, before):
    path.write_text(before)
    assert invoke("config", "set", "server.port", "1").exit_code == 0
    text = path.read_text()
    assert text.startswith(before)
    assert text.endswith("\n\n[server]\nport = 1\n") or text == "\n[server]\nport = 1\n"
    assert tomllib.loads(text)["server"] == {"port": 1}


@pytest.mark.parametrize(
    "before", ["server.port = 1\n", "server = {port = 1}\n", "[server]\r\nport = 1\r\n", "[log]\n[server]\nport = 1"]
)
def test_every_syntax_of_a_table_can_be_edited(invoke, path, before):
    path.write_bytes(before.encode())
    assert invoke("config", "set", "server.port", "2").exit_code == 0
    assert path.read_bytes() == before.replace("1", "2").encode()
    assert invoke("config", "set", "server.host", "h").exit_code == 0
    assert tomllib.loads(path.read_text())["server"] == {"port": 2, "host": "h"}
    assert invoke("config", "unset", "server.port").exit_code == 0
    assert tomllib.loads(path.read_text())["server"] == {"host": "h"}


def test_unset_removes_one_line(invoke, file):
    result = invoke("config", "unset", "server.port")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "server.port removed\n", "")
    assert file.read_text() == WRITTEN.replace("port    = 8081  # 8080 is taken\n", "")


@pytest.mark.parametrize("key", ["server.host", "defaults.top_p"])
def test_unset_reports_a_key_that_is_not_set(invoke, file, key):
    result = invoke("config", "unset", key)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"{key} is not set\n")
    assert json.loads(invoke("config", "unset", key, "--json").stdout)["removed"] is False
    assert file.read_text() == WRITTEN


def test_unset_does_not_create_a_file(invoke, path):
    assert invoke("config", "unset", "server.port").exit_code == 0
    assert not path.exists()


def test_unset_removes_an_unknown_key(invoke, path):
    path.write_text("[server]\nprot = 1  # oops\nport = 2\n")
    result = invoke("config", "unset", "server.prot", "--json")
    assert json.loads(result.stdout) == {"path": str(path), "key": "server.prot", "removed": True}
    assert path.read_text() == "[server]\nport = 2\n"


@pytest.mark.parametrize("command", [["set", "server.port", "1"], ["unset", "server.port"]], ids=" ".join)
def test_change_suggests_a_reload_if_a_daemon_runs(daemon, invoke, file, command):
    result = invoke("config", *command)
    assert result.exit_code == 0
    assert result.stderr == 'run "osaurusctl reload" to apply the change to the running daemon\n'
    assert daemon.requests == []
    assert invoke("config", *command, "--json").stderr == ""


def test_new_file_and_directory_are_private(invoke, home, monkeypatch):
    monkeypatch.setenv("OSAURUS_HOME", str(home / "new"))
    assert invoke("config", "set", "server.port", "1").exit_code == 0
    assert stat.S_IMODE((home / "new" / "config.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_file_mode_is_kept(invoke, file, mode):
    file.chmod(mode)
    assert invoke("config", "set", "server.port", "1").exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_file_is_replaced_atomically(invoke, file):
    reader = file.open()
    before = file.stat().st_ino
    assert invoke("config", "set", "server.port", "1").exit_code == 0
    assert file.stat().st_ino != before
    with reader:
        assert reader.read() == WRITTEN
    assert list(file.parent.iterdir()) == [file]


def test_symbolic_link_is_kept(invoke, path, home):
    (home / "dotfiles").mkdir()
    real = home / "dotfiles" / "osaurus.toml"
    real.write_text(WRITTEN)
    path.symlink_to("dotfiles/osaurus.toml")
    assert invoke("config", "set", "server.port", "8082").exit_code == 0
    assert path.is_symlink()
    assert "8082" in real.read_text()
    assert list(real.parent.iterdir()) == [real]


def test_target_of_a_dangling_link_is_created(invoke, path, home):
    path.symlink_to("dotfiles/osaurus.toml")
    assert invoke("config", "set", "server.port", "8082").exit_code == 0
    assert path.is_symlink()
    assert (home / "dotfiles" / "osaurus.toml").read_text() == "[server]\nport = 8082\n"


def test_device_is_not_replaced(invoke, path):
    path.symlink_to("/dev/null")
    result = invoke("config", "set", "server.port", "1")
    assert result.exit_code == 1
    assert "not a regular file" in result.stderr
    assert Path("/dev/null").is_char_device()


def test_directory_in_place_of_the_file_is_an_error(invoke, path):
    path.mkdir()
    for command in (["get"], ["check"], ["set", "server.port", "1"]):
        result = invoke("config", *command)
        assert result.exit_code == 1
        assert str(path) in result.stderr


@pytest.mark.parametrize("step", ["os.fsync", "os.fchmod", "pathlib.Path.replace"])
def test_failed_write_leaves_the_old_file(invoke, file, monkeypatch, step):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, fail)
    result = invoke("config", "set", "server.port", "1")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert file.read_text() == WRITTEN
    assert list(file.parent.iterdir()) == [file]


def test_killed_write_leaves_the_old_file(file, home):
    script = (
        "import os, pathlib, signal, osaurusctl.cli\n"
        "pathlib.Path.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "osaurusctl.cli.root.main(['config', 'set', 'server.port', '1'])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert result.returncode == -9
    assert file.read_text() == WRITTEN
