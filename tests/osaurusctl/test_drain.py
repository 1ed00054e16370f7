"""`drain` and `undrain`, and the commands that report draining."""

import json
from collections import deque

import pytest

from osaurusd.wire.admin import Route
from osaurusd.wire.residency import Event, EventKind


def test_drain_returns_immediately_and_says_what_is_running(daemon, invoke):
    daemon.requests_in_flight = deque([2])

    expected = 'draining: 2 requests are running; new ones are rejected until "osaurusctl undrain"\n'
    assert invoke("drain").stdout == expected
    assert invoke("undrain").stdout == "the daemon accepts requests\n"
    assert daemon.bodies(Route.DRAIN) == [{"draining": True}, {"draining": False}]


def test_drain_waits_for_the_last_request(daemon, invoke):
    daemon.requests_in_flight = deque([3, 3, 1, 0])

    assert json.loads(invoke("drain", "--wait", "--json").stdout)["requests"] == 0
    assert not daemon.requests_in_flight


def test_drain_gives_up_after_the_timeout_and_keeps_draining(daemon, invoke):
    daemon.requests_in_flight = deque([1] * 1000)

    result = invoke("drain", "--wait", "--timeout", "0", "--json")

    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert (error["code"], daemon.draining) == ("not_drained", True)
    assert "1 request(s) are still running after 0 s" in error["message"]


def test_drain_that_is_undone_meanwhile_does_not_wait_for_ever(daemon, invoke):
    daemon.requests_in_flight = deque([1] * 1000)
    daemon.keeps_draining = False

    result = invoke("drain", "--wait")

    assert result.exit_code == 1
    assert 'ended by "osaurusctl undrain"' in result.stderr


def test_timeout_without_wait_is_a_usage_error(daemon, invoke):
    assert invoke("drain", "--timeout", "5").exit_code == 2


@pytest.mark.parametrize("timeout", ["nan", "-5", "soon", ""])
def test_a_timeout_that_is_no_duration_is_a_usage_error(daemon, invoke, timeout):
    result = invoke("drain", "--wait", f"--timeout={timeout}")

    assert result.exit_code == 2
    assert "is not a duration" in result.stderr
    assert not daemon.draining


@pytest.mark.parametrize(("typed", "command"), [("cordon", "drain"), ("uncordon", "undrain")])
def test_names_of_kubernetes_are_suggested(invoke, typed, command):
    assert command in invoke(typed).stderr


def test_status_and_doctor_report_draining(daemon, invoke):
    assert "draining" not in invoke("status").stdout
    assert "draining" not in invoke("doctor").stdout
    daemon.draining = True

    assert "for 0s; no request is running" in invoke("status").stdout
    assert "the daemon is draining and rejects new requests" in invoke("doctor").stdout
    assert json.loads(invoke("status", "--json").stdout)["drain"]["draining"]


def test_events_of_the_daemon_name_no_model(daemon, invoke):
    daemon.events = [Event(kind=EventKind.DRAINING, time=0.0)]

    assert invoke("events").stdout.split()[1:] == ["draining", "osaurusd"]


def test_up_says_that_the_daemon_is_draining(daemon, invoke):
    assert "draining" not in invoke("up").stderr
    daemon.draining = True

    assert 'run "osaurusctl undrain"' in invoke("up").stderr
