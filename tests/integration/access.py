"""Helpers for tests of API keys and TLS."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import daemons
from tests.daemons import Daemon

TIMEOUT_SECONDS = 60


def create(daemon: Daemon, name: str | None = None) -> dict[str, Any]:
    """Create an API key."""
    status, key = daemon.admin("POST", "/v0/keys", {"name": name})
    assert 201 == status
    return dict(key)


def serve(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is expected to fail, and wait until it exits."""
    return subprocess.run(
        [sys.executable, "-m", "osaurusd", "serve", "--port", "0", *arguments],
        env=daemons.environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
