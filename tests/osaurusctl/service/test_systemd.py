"""The unit file is systemd's, and a job survives the way into it and back."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import systemd
from osaurusctl.service.job import LABEL, Job, Mode
from osaurusctl.service.run import Result
from osaurusd.config import Config

NASTY = "/x/a b %h $HOME \"q\" back\\slash 'single' ü"
JOB = Job(
    launcher=Path(NASTY),
    user_home=Path("/home/100% me"),
    log_dir=Path(),
    host="::1",
    port=0,
    insecure=True,
    env={"A": NASTY},
)


def test_a_job_is_read_back_as_it_was_written():
    assert systemd.recorded(systemd.render(JOB)) == JOB


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_has_nothing_to_say_against_it(tmp_path):
    program = tmp_path / "a b %h $x osaurusd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "osaurusd.service"
    job = Job(launcher=program, user_home=tmp_path, log_dir=Path(), port=1, env={"A": 'x %y $z "q"'})
    unit.write_text(systemd.render(job))
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--man=no", unit], env=env, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_systemd_waits_longer_than_the_daemon_takes_to_end():
    config = Config()
    assert systemd.STOP_SECONDS > config.server.shutdown_grace_seconds + 2 * config.worker.stop_grace_seconds


@pytest.mark.parametrize("text", ["", "[Service]\nExecStart=\n", '[Service]\nExecStart="x\nWorkingDirectory=/\n'])
def test_another_unit_is_not_ours(text):
    with pytest.raises(CliError, match="no unit of osaurusd"):
        systemd.recorded(text)


@pytest.mark.parametrize("mode", [Mode.HEADLESS, Mode.SYSTEM])
def test_modes_of_launchd_are_refused(mode):
    with pytest.raises(CliError, match="is for launchd") as error:
        systemd.Systemd(lambda *_: Result(0), LABEL, mode)
    assert "enable-linger" in error.value.hint
