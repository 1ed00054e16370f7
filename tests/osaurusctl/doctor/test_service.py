"""The check of the process priority that macOS gives the service."""

import os
import sys

import pytest

from osaurusctl.doctor import service
from osaurusctl.doctor.check import Context, Verdict
from osaurusctl.service.job import Mode
from osaurusctl.service.manager import ServiceStatus
from osaurusd.wire import paths


@pytest.fixture
def build_context(monkeypatch, tmp_path):
    """Build the context of a Mac on which the job runs and `ps` prints the given output."""

    def build(ps_output, pid=4711):
        ps = tmp_path / "ps"
        ps.write_text(f'#!/bin/sh\n[ "$*" = "-o pri= -p 4711" ] && echo "{ps_output}"\n')
        ps.chmod(0o700)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(sys, "platform", "darwin")
        service_status = ServiceStatus(
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
        return Context(paths.resolve(), None, service_status, None, None, None, None)

    return build


@pytest.mark.parametrize(
    ("ps_output", "verdict"),
    [
        ("  31", Verdict.OK),
        ("46", Verdict.OK),
        ("20", Verdict.FAILURE),
        ("4", Verdict.FAILURE),
        ("", Verdict.WARNING),
        ("ps: unknown keyword", Verdict.WARNING),
    ],
)
def test_low_priority_is_a_failure(build_context, ps_output, verdict):
    (check,) = service.check_priority(build_context(ps_output))

    assert verdict == check.verdict


def test_stopped_job_is_not_checked(build_context):
    assert [] == list(service.check_priority(build_context("20", pid=None)))


def test_other_systems_are_not_checked(build_context, monkeypatch):
    context = build_context("20")
    monkeypatch.setattr(sys, "platform", "linux")

    assert [] == list(service.check_priority(context))
