"""What the tests of keys and TLS have in common."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import daemons
from tests.daemons import Daemon

PATIENCE_SECONDS = 60


def create(daemon: Daemon, name: str | None = None) -> dict[str, Any]:
    """Have the daemon make a key."""
    status, made = daemon.admin("POST", "/v0/keys", {"name": name})
    assert 201 == status
    return dict(made)


def ctl(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `osaurusctl`."""
    return _run(home, "osaurusctl", *arguments)


def serve(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is thought not to serve, and wait for its end."""
    return _run(home, "osaurusd", "serve", "--port", "0", *arguments)


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=daemons.environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
