"""The launchd property list matches the daemon's configuration."""

import plistlib
from pathlib import Path

from osaurusd.config import Config

FOLDER = Path(__file__).parents[2] / "launchd"
TEMPLATE = FOLDER / "ai.osaurus.osaurusd.plist"
PLIST = plistlib.loads(TEMPLATE.read_bytes())


def test_exit_timeout_exceeds_the_longest_shutdown() -> None:
    config = Config()
    # Workers get a shutdown request, SIGTERM and SIGKILL, with the grace period between them.
    longest_shutdown = config.server.shutdown_grace_seconds + 2 * config.worker.stop_grace_seconds

    assert PLIST["ExitTimeOut"] > longest_shutdown


def test_job_is_not_throttled_and_restarts_only_after_a_failure() -> None:
    assert "Interactive" == PLIST["ProcessType"]
    assert {"SuccessfulExit": False} == PLIST["KeepAlive"]
    assert PLIST["RunAtLoad"] is True


def test_every_placeholder_is_documented_for_packagers() -> None:
    template, readme = TEMPLATE.read_text(), (FOLDER / "README.md").read_text()

    for placeholder in ("@OSAURUSD@", "@HOME@", "@LOGS@"):
        assert placeholder in template
        assert placeholder in readme
