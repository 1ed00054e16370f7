"""The launchd template says what the daemon needs."""

import plistlib
from pathlib import Path

from osaurusd.config import Config

TEMPLATE = plistlib.loads((Path(__file__).parents[2] / "launchd" / "ai.osaurus.osaurusd.plist").read_bytes())


def test_launchd_waits_longer_than_the_daemon_takes_to_end() -> None:
    config = Config()
    # A worker is asked, told and killed, with its grace between.
    slowest = config.server.shutdown_grace_seconds + 2 * config.worker.stop_grace_seconds

    assert TEMPLATE["ExitTimeOut"] > slowest


def test_the_job_is_not_clocked_down_and_comes_back_only_after_a_failure() -> None:
    assert "Interactive" == TEMPLATE["ProcessType"]
    assert {"SuccessfulExit": False} == TEMPLATE["KeepAlive"]
    assert TEMPLATE["RunAtLoad"] is True


def test_every_placeholder_is_explained_for_packagers() -> None:
    folder = Path(__file__).parents[2] / "launchd"
    text = (folder / "ai.osaurus.osaurusd.plist").read_text()
    explained = (folder / "README.md").read_text()

    for placeholder in ("@OSAURUSD@", "@HOME@", "@LOGS@"):
        assert placeholder in text
        assert placeholder in explained
