"""The systemd unit: valid for systemd, and the job in it can be parsed again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import systemd
from osaurusctl.service.job import LABEL, Job, Mode
from osaurusctl.service.manager import Result
from osaurusd.config import Config

SPECIAL_CHARACTERS = "/x/a b %h $HOME \"q\" back\\slash 'single' ü"
JOB = Job(
    launcher=Path(SPECIAL_CHARACTERS),
    user_home=Path("/home/100% me"),
    log_dir=Path(),
    host="::1",
    port=0,
    insecure=True,
    env={"A": SPECIAL_CHARACTERS},
)


def test_parsed_job_equals_the_rendered_job():
    assert systemd.parse_unit(systemd.render_unit(JOB)) == JOB


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="requires systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    program = tmp_path / "a b %h $x osaurusd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "osaurusd.service"
    job = Job(launcher=program, user_home=tmp_path, log_dir=Path(), port=1, env={"A": 'x %y $z "q"'})
    unit.write_text(systemd.render_unit(job))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", unit], env=env, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_stop_timeout_exceeds_the_grace_periods():
    config = Config()
    assert systemd.STOP_SECONDS > config.server.shutdown_grace_seconds + 2 * config.worker.stop_grace_seconds


@pytest.mark.parametrize("text", ["", "[Service]\nExecStart=\n", '[Service]\nExecStart="x\nWorkingDirectory=/\n'])
def test_other_unit_is_rejected(text):
    with pytest.raises(CliError, match="not written by osaurusctl"):
        systemd.parse_unit(text)


@pytest.mark.parametrize("mode", [Mode.HEADLESS, Mode.SYSTEM])
def test_launchd_modes_are_rejected(mode):
    with pytest.raises(CliError, match="requires launchd") as error:
        systemd.Systemd(lambda *_: Result(0), LABEL, mode)
    assert "enable-linger" in error.value.hint


@pytest.mark.parametrize(
    ("result", "status", "expected"),
    [
        ("success", "0", None),
        ("", "", None),
        ("success", "15", "15"),
        ("exit-code", "1", "1 (exit-code)"),
        ("signal", "9", "9 (signal)"),
    ],
)
def test_status_names_an_exit_that_was_not_a_success(tmp_path, result, status, expected):
    shown = f"LoadState=loaded\nMainPID=7\nResult={result}\nExecMainStatus={status}\n"
    env = {"XDG_CONFIG_HOME": str(tmp_path)}

    assert expected == systemd.Systemd(lambda *_: Result(0, shown), LABEL, Mode.LOGIN, env).status().last_exit
