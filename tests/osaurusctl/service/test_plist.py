"""A job survives the way into a property list and back, whatever its values hold."""

import dataclasses
import plistlib
from pathlib import Path

import pytest

from osaurusctl.errors import CliError
from osaurusctl.service import plist
from osaurusctl.service.job import LABEL, Job, Mode

NASTY = "/tmp/a b & <c> \"d\" 'e' @LOGS@x ü"


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("host", "port", "insecure"), [(None, None, False), ("::1", 0, True), ("localhost", 65535, False)]
)
def test_a_job_is_read_back_as_it_was_written(mode, host, port, insecure):
    job = Job(
        launcher=Path("/opt/x & y/osaurusd"),
        user_home=Path("/Users/a b"),
        log_dir=Path("/Users/a b/Library/Logs/osaurusd"),
        host=host,
        port=port,
        insecure=insecure,
        env={"HF_HOME": "/x <y> & z", "EMPTY": ""},
        mode=mode,
        user="me" if mode is Mode.SYSTEM else None,
    )
    content = plist.encode(plist.render(job, LABEL))
    assert plist.recorded(plist.decode(content), mode) == job


def test_values_are_put_into_the_tree_and_not_into_text():
    job = Job(launcher=Path("/bin/<a>&amp;"), user_home=Path("/h"), log_dir=Path("/l"), env={"X": NASTY})
    tree = plistlib.loads(plist.encode(plist.render(job, LABEL)))
    assert tree["ProgramArguments"][0] == "/bin/<a>&amp;"
    assert tree["EnvironmentVariables"]["X"] == NASTY


def test_modes_differ_in_what_launchd_must_know():
    job = Job(launcher=Path("/o"), user_home=Path("/Users/me"), log_dir=Path("/l"), user="me")
    login, headless, system = (plist.render(dataclasses.replace(job, mode=mode), LABEL) for mode in Mode)
    assert "LimitLoadToSessionType" not in login
    assert headless["LimitLoadToSessionType"] == "Background"
    assert (system["UserName"], system["EnvironmentVariables"]["HOME"]) == ("me", "/Users/me")
    assert "UserName" not in login


@pytest.mark.parametrize("content", [b"", b"<plist>", b"<plist><dict><key>a</key></dict></plist>", b"<a>&&</a>"])
def test_what_is_no_property_list_is_said_to_be_none(content):
    with pytest.raises(CliError, match="no property list"):
        plist.decode(content)


@pytest.mark.parametrize(
    "tree", [{}, {"ProgramArguments": []}, {"ProgramArguments": ["x"], "EnvironmentVariables": []}]
)
def test_another_jobs_property_list_is_not_ours(tree):
    with pytest.raises(CliError, match="no property list of osaurusd"):
        plist.recorded(tree, Mode.LOGIN)
