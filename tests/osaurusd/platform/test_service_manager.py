"""A supervised daemon notifies its service manager and retries instead of exiting."""

import itertools
import os
import socket
import stat
import sys

import pytest

from osaurusd.errors import ListenFailed
from osaurusd.platform import service_manager


@pytest.mark.parametrize(
    ("value", "supervised", "captured"),
    [
        ("launchd", True, True),
        ("systemd", True, True),
        ("up", False, True),
        ("", False, True),
        (None, False, False),
    ],
)
def test_only_service_managers_supervise(value, supervised, captured):
    env = {} if value is None else {"OSAURUS_SUPERVISED": value}
    assert (supervised, captured) == (service_manager.is_supervised(env), service_manager.captures_stderr(env))


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")


@pytest.mark.parametrize("abstract", [False, pytest.param(True, marks=only_linux)])
def test_systemd_is_notified(tmp_path, abstract):
    name = f"osaurus-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name if abstract else name)
        channel.settimeout(30)
        service_manager.notify("READY=1", "STATUS=fine", env={"NOTIFY_SOCKET": "@" + name if abstract else name})
        assert channel.recv(100) == b"READY=1\nSTATUS=fine"


def test_a_missing_notify_socket_is_ignored(tmp_path):
    service_manager.notify("READY=1", env={})
    service_manager.notify("READY=1", env={"NOTIFY_SOCKET": str(tmp_path / "missing")})


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_interval_is_half_of_its_timeout(env, seconds):
    assert service_manager.watchdog_interval(env) == seconds


def test_retry_delays_grow_up_to_a_limit():
    delays = list(itertools.islice(service_manager.retry_delays(), 8))
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_failures_are_retried_and_a_repeated_reason_is_printed_once(capfd):
    slept = []
    outcomes = iter([ListenFailed("a"), ListenFailed("a"), OSError("b"), ListenFailed("a")])

    def attempt():
        for outcome in outcomes:
            raise outcome
        return "done"

    assert service_manager.retry_until_success(attempt, slept.append) == "done"
    assert slept == [0.5, 1.0, 2.0, 4.0]
    assert capfd.readouterr().err.splitlines() == [
        "osaurusd: a; retrying",
        "osaurusd: b; retrying",
        "osaurusd: a; retrying",
    ]


def test_unexpected_errors_are_not_retried():
    def attempt():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        service_manager.retry_until_success(attempt)


def test_a_large_crash_log_is_truncated_and_copied_once(tmp_path):
    path = tmp_path / "err.log"
    path.write_bytes(b"x" * 100)
    with path.open("ab", buffering=0) as stream:
        service_manager.rotate_crash_log(stream.fileno(), 100)
        assert path.stat().st_size == 100
        stream.write(b"y")
        service_manager.rotate_crash_log(stream.fileno(), 100)
        stream.write(b"after")
    assert path.read_bytes() == b"after"
    copy = tmp_path / "err.log.1"
    assert copy.read_bytes() == b"x" * 100 + b"y"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_an_output_that_is_not_a_file_is_not_rotated():
    read, write = os.pipe()
    service_manager.rotate_crash_log(write, 0)
    os.close(read)
    os.close(write)
