"""Running checks one after the other, and the report about them."""

import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import psutil

from osaurusd import __version__
from tests.macs import REAL, Mac

PACKAGES = ("mlx", "mlx-metal", "mlx-lm", "transformers", "llguidance", "aiohttp")

_COMMANDS = {
    "macos": ["sw_vers"],
    "chip": ["sysctl", "-n", "machdep.cpu.brand_string"],
    "power": ["pmset", "-g", "batt"],
    "session": ["launchctl", "managername"],
    "pressure": ["sysctl", "-n", "kern.memorystatus_vm_pressure_level"],
    "wired_limit": ["sysctl", "-n", "iogpu.wired_limit_mb"],
}


class Skipped(Exception):
    """The check cannot run on this machine; the message explains why."""


@dataclass(frozen=True)
class Scale:
    """How much to do: everything within ten minutes, or just enough to run each check once."""

    repeats: int = 10
    prompt_tokens: int = 7900
    long_prompt_tokens: int = 16_000
    output_tokens: int = 128
    compared_tokens: int = 64
    churn_seconds: float = 180.0


QUICK = Scale(
    repeats=1, prompt_tokens=20, long_prompt_tokens=1000, output_tokens=8, compared_tokens=8, churn_seconds=3.0
)


@dataclass
class Run:
    """What the checks share: the account with the service under test, and the amount of work."""

    mac: Mac
    scale: Scale


Details = dict[str, Any]
Check = Callable[[Run], Details]


@dataclass
class Report:
    """The results so far; every check adds one."""

    results: list[Details] = field(default_factory=list)

    def run(self, part: str, check: Check, run: Run, progress: Callable[[str], None]) -> None:
        """Run a check. A failure ends only this check."""
        started = time.monotonic()
        outcome: Details = {"part": part, "check": check.__name__}
        try:
            outcome |= {"result": "passed", "details": check(run)}
        except Skipped as reason:
            outcome |= {"result": "skipped", "reason": str(reason)}
        except Exception as error:  # noqa: BLE001  whatever fails is what the report is for
            outcome |= {"result": "failed", "reason": str(error), "traceback": traceback.format_exc()}
        outcome["seconds"] = round(time.monotonic() - started, 2)
        self.results.append(outcome)
        progress(f"{outcome['result']:<8}{outcome['seconds']:>7.1f} s  {part}: {check.__name__}")

    def document(self) -> Details:
        failed = [result["check"] for result in self.results if result["result"] == "failed"]
        return {"format": 1, "passed": not failed, "failed": failed, "machine": machine(), "checks": self.results}


def machine() -> Details:
    """Describe this machine, without names of users or hosts."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "architecture": platform.machine(),
        "python": sys.version,
        "real_launchd": REAL,
        "memory_bytes": psutil.virtual_memory().total,
        "versions": {"osaurusd": __version__, **{name: _version(name) for name in PACKAGES}},
        **{name: output for name, command in _COMMANDS.items() if (output := run_program(command)) is not None},
    }


def run_program(command: Sequence[str]) -> str | None:
    """Return the output of a program; None if it does not exist or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def expect(condition: object, reason: str) -> None:
    """Fail the check unless the condition holds."""
    if not condition:
        raise AssertionError(reason)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
