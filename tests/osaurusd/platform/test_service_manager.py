"""What a supervised daemon tells its manager, and how it goes on where others would end."""

import itertools
import os
import socket
import stat

import pytest

from osaurusd.errors import ListenFailed
from osaurusd.platform import service_manager


@pytest.mark.parametrize(
    ("value", "expected"), [("launchd", True), ("systemd", True), ("up", False), ("", False), (None, False)]
)
def test_only_service_managers_supervise(value, expected):
    assert service_manager.supervised({} if value is None else {"OSAURUS_SUPERVISED": value}) is expected


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path, abstract):
    name = f"osaurus-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name if abstract else name)
        channel.settimeout(30)
        service_manager.notify("READY=1", "STATUS=fine", env={"NOTIFY_SOCKET": "@" + name if abstract else name})
        assert channel.recv(100) == b"READY=1\nSTATUS=fine"


def test_nobody_to_tell_is_no_failure(tmp_path):
    service_manager.notify("READY=1", env={})
    service_manager.notify("READY=1", env={"NOTIFY_SOCKET": str(tmp_path / "gone")})


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
def test_the_watchdog_is_fed_twice_as_often_as_it_asks_for(env, seconds):
    assert service_manager.watchdog_seconds(env) == seconds


def test_pauses_grow_and_have_a_limit():
    found = list(itertools.islice(service_manager.pauses(), 8))
    assert found == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_failures_are_tried_again_and_each_reason_is_said_once(capfd):
    slept = []
    outcomes = iter([ListenFailed("a"), ListenFailed("a"), OSError("b"), ListenFailed("a")])

    def attempt():
        for outcome in outcomes:
            raise outcome
        return "done"

    assert service_manager.persist(attempt, slept.append) == "done"
    assert slept == [0.5, 1.0, 2.0, 4.0]
    assert capfd.readouterr().err.splitlines() == [
        "osaurusd: a; trying again",
        "osaurusd: b; trying again",
        "osaurusd: a; trying again",
    ]


def test_what_is_no_expected_failure_is_not_hidden():
    def attempt():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        service_manager.persist(attempt)


def test_a_crash_log_that_has_grown_is_emptied_and_kept_once(tmp_path):
    path = tmp_path / "err.log"
    path.write_bytes(b"x" * 100)
    with path.open("ab", buffering=0) as stream:
        service_manager.bound_crash_log(stream.fileno(), 100)
        assert path.stat().st_size == 100
        stream.write(b"y")
        service_manager.bound_crash_log(stream.fileno(), 100)
        stream.write(b"after")
    assert path.read_bytes() == b"after"
    kept = tmp_path / "err.log.1"
    assert kept.read_bytes() == b"x" * 100 + b"y"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_what_is_no_file_is_left_alone():
    read, write = os.pipe()
    service_manager.bound_crash_log(write, 0)
    os.close(read)
    os.close(write)
