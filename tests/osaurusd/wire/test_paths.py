"""Paths with and without `OSAURUS_HOME`."""

import os
import sys
from pathlib import Path

import pytest

from osaurusd.wire import paths

DEFAULT_PATHS = {
    "darwin": {
        "config_file": "Library/Application Support/osaurusd/config.toml",
        "state_dir": "Library/Application Support/osaurusd/state",
        "models_dir": "Library/Application Support/osaurusd/models",
        "log_file": "Library/Logs/osaurusd/osaurusd.log",
        "socket": "Library/Application Support/osaurusd/run/admin.sock",
    },
    "linux": {
        "config_file": ".config/osaurusd/config.toml",
        "state_dir": ".local/state/osaurusd/state",
        "models_dir": ".local/share/osaurusd/models",
        "log_file": ".local/state/osaurusd/log/osaurusd.log",
        "socket": ".local/share/osaurusd/run/admin.sock",
    },
}


@pytest.fixture
def user(monkeypatch):
    """The home directory of a user without relevant environment variables."""
    for name in list(os.environ):
        if name.startswith(("XDG_", "OSAURUS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/u")
    return Path("/home/u")


def home_with_socket_length(length):
    """A home whose socket path has `length` bytes."""
    return "/" + "h" * (length - len("/run/admin.sock") - 1)


def test_all_paths_are_under_osaurus_home():
    resolved = paths.resolve({"OSAURUS_HOME": "/srv/osaurus"})
    places = {
        "config_file": resolved.config_file,
        "state_dir": resolved.state_dir,
        "models_dir": resolved.models_dir,
        "log_dir": resolved.log_dir,
        "run_dir": resolved.run_dir,
        "socket": resolved.socket,
        "lock": resolved.lock,
        "log_file": resolved.log_file,
        "crash_log": resolved.crash_log,
    }
    assert {name: str(path) for name, path in places.items()} == {
        "config_file": "/srv/osaurus/config.toml",
        "state_dir": "/srv/osaurus/state",
        "models_dir": "/srv/osaurus/models",
        "log_dir": "/srv/osaurus/logs",
        "run_dir": "/srv/osaurus/run",
        "socket": "/srv/osaurus/run/admin.sock",
        "lock": "/srv/osaurus/run/admin.sock.lock",
        "log_file": "/srv/osaurus/logs/osaurusd.log",
        "crash_log": "/srv/osaurus/logs/osaurusd.stderr.log",
    }


@pytest.mark.parametrize("env", [{}, {"OSAURUS_HOME": ""}], ids=["unset", "empty"])
def test_default_paths_follow_the_platform(user, env):
    resolved = paths.resolve(env)
    places = DEFAULT_PATHS[sys.platform]
    assert {name: getattr(resolved, name) for name in places} == {name: user / place for name, place in places.items()}


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("OSAURUS_HOME", "/srv/osaurus")
    assert paths.resolve() == paths.resolve({"OSAURUS_HOME": "/srv/osaurus"})


def test_the_socket_is_not_in_a_runtime_directory(user, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.resolve({}).socket.is_relative_to(user)


@pytest.mark.parametrize(("home", "expected"), [("~/o", "/home/u/o"), ("~", "/home/u"), ("/a/../b", "/a/../b")])
def test_a_tilde_is_expanded(user, home, expected):
    assert str(paths.resolve({"OSAURUS_HOME": home}).config_file) == f"{expected}/config.toml"


def test_a_relative_home_is_made_absolute(monkeypatch):
    monkeypatch.chdir("/")
    assert str(paths.resolve({"OSAURUS_HOME": "o"}).config_file) == "/o/config.toml"


def test_resolving_creates_nothing(home):
    assert paths.resolve({"OSAURUS_HOME": str(home / "o")}).run_dir == home / "o" / "run"
    assert list(home.iterdir()) == []


def test_a_socket_path_of_103_bytes_is_accepted():
    socket = paths.resolve({"OSAURUS_HOME": home_with_socket_length(103)}).socket
    assert len(str(socket)) == 103


@pytest.mark.parametrize("length", [104, 108, 200])
def test_a_longer_socket_path_is_rejected_naming_path_and_limit(length):
    home = home_with_socket_length(length)
    with pytest.raises(paths.SocketPathTooLong) as caught:
        paths.resolve({"OSAURUS_HOME": home})
    assert f"{home}/run/admin.sock" in str(caught.value)
    assert str(length) in str(caught.value)
    assert "103" in str(caught.value)


def test_the_limit_counts_bytes_not_characters():
    home = home_with_socket_length(103).replace("hh", "é", 10)
    assert len(str(paths.resolve({"OSAURUS_HOME": home}).socket)) == 93
    with pytest.raises(paths.SocketPathTooLong, match="104 bytes"):
        paths.resolve({"OSAURUS_HOME": home + "h"})


def test_a_long_default_path_is_rejected_too(user, monkeypatch):
    monkeypatch.setenv("HOME", "/" + "h" * 103)
    with pytest.raises(paths.SocketPathTooLong, match="103"):
        paths.resolve({})
