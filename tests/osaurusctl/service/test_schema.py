"""Nothing is written that launchd would take and not mean."""

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import plist, schema
from osaurusctl.service.job import Job, Mode


@pytest.fixture
def job(tmp_path):
    return Job(launcher=tmp_path / "osaurusd", user_home=tmp_path, log_dir=tmp_path / "logs", port=9000, env={"A": "b"})


@pytest.fixture
def tree(job):
    return plist.render(job, "ai.osaurus.osaurusd")


def test_what_is_rendered_is_right(tree):
    assert schema.problems(tree, Mode.LOGIN) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Label", ""),
        ("ProgramArguments", []),
        ("ProgramArguments", ["osaurusd", "serve"]),
        ("ProgramArguments", ["/bin/x", 1]),
        ("ProgramArguments", ["/Volumes/X/osaurusd"]),
        ("RunAtLoad", 1),
        ("KeepAlive", True),
        ("KeepAlive", {"SuccessfulExit": True}),
        ("KeepAlive", {"SuccessfulExit": False, "Crashed": False}),
        ("ThrottleInterval", 0),
        ("ThrottleInterval", True),
        ("ThrottleInterval", "10"),
        ("ExitTimeOut", 0),
        ("ExitTimeOut", 4),
        ("ProcessType", "Background"),
        ("ProcessType", "Standard"),
        ("Umask", 0o1000),
        ("SoftResourceLimits", {"NumberOfFiles": 0}),
        ("SoftResourceLimits", {"OpenFiles": 10}),
        ("WorkingDirectory", "~"),
        ("WorkingDirectory", "/Volumes/External"),
        ("StandardErrorPath", "logs/err"),
        ("EnvironmentVariables", {"PORT": 8080}),
        ("LimitLoadToSessionType", "Console"),
        ("LimitLoadToSessionType", []),
        ("UserName", "somebody"),
        ("Disabled", False),
        ("EnableTransactions", True),
        ("Program", "/bin/osaurusd"),
        ("AbandonProcessGroup", True),
        ("Labl", "x"),
    ],
)
def test_what_is_wrong_is_named(tree, key, value):
    (problem,) = schema.problems({**tree, key: value}, Mode.LOGIN)
    assert problem.startswith(key)


@pytest.mark.parametrize("key", ["Label", "ProgramArguments"])
def test_what_is_missing_is_named(tree, key):
    del tree[key]
    assert schema.problems(tree, Mode.LOGIN) == [f"{key} is missing"]


def test_a_link_to_another_volume_is_seen_through(tree, tmp_path):
    (tmp_path / "link").symlink_to("/Volumes/External")
    (problem,) = schema.problems({**tree, "WorkingDirectory": str(tmp_path / "link")}, Mode.LOGIN)
    assert "not on the boot volume" in problem


def test_a_daemon_of_the_system_must_not_be_root(job, tree):
    assert schema.problems(tree, Mode.SYSTEM) == ["UserName is missing: the daemon must not run as root"]
    sessions = {**tree, "UserName": "me", "LimitLoadToSessionType": "Aqua"}
    assert schema.problems(sessions, Mode.SYSTEM) == ["LimitLoadToSessionType must not be there: it is for agents"]


def test_rendering_refuses_what_the_schema_does(tmp_path):
    job = Job(launcher=tmp_path / "osaurusd", user_home=tmp_path, log_dir=tmp_path.relative_to("/"))
    with pytest.raises(CliError, match="StandardOutPath: must be an absolute path"):
        plist.render(job, "label")
