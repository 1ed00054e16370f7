"""The system service: sudo only for steps that need root."""

import shlex

import pytest

from osaurusctl.service.job import LABEL, Job, Mode
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.manager import Result


@pytest.fixture
def calls():
    return []


@pytest.fixture
def manager(calls, tmp_path):
    def run(command, _):
        calls.append(shlex.join(command))
        return Result(113 if "print" in command[-2:-1] and command[-1] != "system" else 0)

    return Launchd(run, LABEL, Mode.SYSTEM, 501, tmp_path, system_directory=tmp_path)


def test_steps_that_change_something_use_sudo(manager, calls, tmp_path):
    job = Job(
        launcher=tmp_path / "o", user_home=tmp_path, log_dir=tmp_path / "logs", mode=Mode.SYSTEM, user="me", env={}
    )
    manager.write_step(manager.render(job)).run()
    (install,) = calls
    assert install.startswith("sudo install -o root -g wheel -m 644 ")
    assert install.endswith(str(manager.file))
    calls.clear()
    manager.load_step().run()
    assert calls == [
        f"sudo launchctl enable system/{LABEL}",
        f"sudo launchctl bootstrap system {manager.file}",
        f"launchctl print system/{LABEL}",
    ]


def test_status_does_not_use_sudo(manager, calls):
    manager.status()
    assert [call for call in calls if call.startswith("sudo")] == []


def test_step_descriptions_mention_sudo(manager):
    texts = [
        step.text
        for step in (manager.write_step(b""), manager.load_step(), manager.unload_step(), manager.write_step(None))
    ]
    assert all("sudo" in text for text in texts), texts
