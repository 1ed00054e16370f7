import os
import sys

import pytest

from osaurusctl.doctor import service
from osaurusctl.doctor.check import Patient, Verdict
from osaurusctl.service.manager import Facts, Mode
from osaurusd.wire import paths


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A Mac whose `ps` prints what it is told to, and on which our job runs."""

    def mac(printed, pid=4711):
        ps = tmp_path / "ps"
        ps.write_text(f'#!/bin/sh\n[ "$*" = "-o pri= -p 4711" ] && echo "{printed}"\n')
        ps.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(sys, "platform", "darwin")
        facts = Facts(
            manager="launchd",
            file="/x.plist",
            mode=Mode.LOGIN,
            installed=True,
            enabled=True,
            loaded=True,
            running=pid is not None,
            state="running",
            pid=pid,
        )
        return Patient(paths.resolve(), None, facts, None, None, None, None)

    return mac


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("  31", Verdict.OK),
        ("46", Verdict.OK),
        ("20", Verdict.FAILURE),
        ("4", Verdict.FAILURE),
        ("", Verdict.WARNING),
        ("ps: unknown keyword", Verdict.WARNING),
    ],
)
def test_a_daemon_that_macos_clocks_down_is_found(mac, printed, verdict):
    (check,) = service.priority(mac(printed))

    assert verdict == check.verdict


def test_only_a_running_job_has_a_priority(mac):
    assert [] == list(service.priority(mac("20", pid=None)))


def test_other_systems_have_other_priorities(mac, monkeypatch):
    patient = mac("20")
    monkeypatch.setattr(sys, "platform", "linux")

    assert [] == list(service.priority(patient))
