"""Which machines are supported, by what `uname` reports there."""

import os
import subprocess
import sys

import pytest

from osaurusd.wire import machine
from osaurusd.wire.machine import UnsupportedMachine


@pytest.mark.parametrize(
    ("system", "release", "architecture"),
    [
        ("Darwin", "23.0.0", "arm64"),
        ("Darwin", "25.5.0", "arm64"),
        ("Linux", "6.1.0-18-amd64", "x86_64"),
        ("Linux", "5.15.0-tegra", "aarch64"),
    ],
)
def test_macos_14_on_apple_silicon_and_linux_are_supported(system, release, architecture):
    machine.check(system, release, architecture)


@pytest.mark.parametrize(
    ("system", "release", "architecture", "reason"),
    [
        ("Darwin", "22.6.0", "arm64", "requires macOS 14 or newer"),
        ("Darwin", "24.0.0", "x86_64", "requires Apple silicon, but this Python runs on x86_64"),
        ("FreeBSD", "14.1", "amd64", "does not support FreeBSD"),
    ],
)
def test_other_machines_are_rejected_with_the_reason(system, release, architecture, reason):
    with pytest.raises(UnsupportedMachine, match=reason):
        machine.check(system, release, architecture)


@pytest.mark.parametrize(
    "command", [["osaurusd", "serve"], ["osaurusctl", "up"], ["osaurusctl", "install"], ["osaurusctl", "doctor"]]
)
def test_programs_fail_early_on_an_old_mac(home, command):
    """Nothing is created: the check comes first."""
    program = (
        "import os, runpy, sys\n"
        "os.uname = lambda: os.uname_result(('Darwin', 'mac', '22.6.0', '', 'arm64'))\n"
        f"sys.argv = {command!r}\n"
        f"runpy.run_module({command[0]!r}, run_name='__main__')\n"
    )
    hub = "http://127.0.0.1:9"
    env = {**os.environ, "OSAURUS_HOME": str(home), "OSAURUS_SERVICE_MANAGER": "none", "HF_ENDPOINT": hub}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=240)

    assert 1 == run.returncode
    assert "requires macOS 14 or newer" in run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert [] == list(home.iterdir())
