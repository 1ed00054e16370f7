"""A service of the system: its own file, and sudo for what needs root and nothing else."""

import shlex

import pytest

from osaurusctl.service.job import LABEL, Job, Mode
from osaurusctl.service.launchd import Launchd
from osaurusctl.service.run import Result


@pytest.fixture
def calls():
    return []


@pytest.fixture
def manager(calls, tmp_path):
    def run(command, _):
        calls.append(shlex.join(command))
        return Result(113 if "print" in command[-2:-1] and command[-1] != "system" else 0)

    return Launchd(run, LABEL, Mode.SYSTEM, 501, tmp_path, daemons=tmp_path)


def test_root_is_asked_for_what_changes_something(manager, calls, tmp_path):
    job = Job(
        launcher=tmp_path / "o", user_home=tmp_path, log_dir=tmp_path / "logs", mode=Mode.SYSTEM, user="me", env={}
    )
    manager.writing(manager.content(job)).act()
    (install,) = calls
    assert install.startswith("sudo install -o root -g wheel -m 644 ")
    assert install.endswith(str(manager.file))
    calls.clear()
    manager.loading().act()
    assert calls == [
        f"sudo launchctl enable system/{LABEL}",
        f"sudo launchctl bootstrap system {manager.file}",
    ]


def test_looking_needs_no_root(manager, calls):
    manager.facts()
    assert [call for call in calls if call.startswith("sudo")] == []


def test_steps_say_that_they_call_sudo(manager):
    texts = [
        step.text for step in (manager.writing(b""), manager.loading(), manager.unloading(), manager.writing(None))
    ]
    assert all("sudo" in text for text in texts), texts
