"""The machine and its system, as far as models over several hosts depend on them. All functions block."""

import functools
import ipaddress
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from osaurusd.addresses import is_private
from osaurusd.wire.hosts import MAX_NAME_LENGTH

PROGRAM_SECONDS = 5.0

_INVALID_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")
_INFINIBAND = Path("/sys/class/infiniband")


def own_name() -> str:
    """Return the name of this machine as a host name of the registry."""
    first_label = socket.gethostname().partition(".")[0]
    return _INVALID_IN_NAMES.sub("-", first_label).strip("-_")[:MAX_NAME_LENGTH] or "host"


def private_addresses(family: int) -> list[str]:
    """Return this machine's addresses on private networks, except those that only this machine or one link knows."""
    items = (each for interface in psutil.net_if_addrs().values() for each in interface if each.family == family)
    found = [ipaddress.ip_address(each.address) for each in items if "%" not in each.address]
    return [str(address) for address in found if is_private(address) and not address.is_loopback]


@functools.cache
def system() -> str:
    """Return the operating system with its version and build."""
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]} ({_output_of('/usr/bin/sw_vers', '-buildVersion') or 'unknown build'})"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, kernel {platform.release()}"


@functools.cache
def chip() -> str:
    """Return the name of the processor; empty if it is unknown."""
    if sys.platform == "darwin":
        return _output_of("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return names[0] if names else ""


def rdma() -> tuple[str, list[str]]:
    """Return whether RDMA is `enabled`, `disabled` or `unavailable`, and the names of its devices."""
    if sys.platform == "darwin":
        status = _output_of("/usr/bin/rdma_ctl", "status").lower()
        devices = parse_ibv_devices(_output_of("/usr/bin/ibv_devices"))
        return next((each for each in ("disabled", "enabled") if each in status), "unavailable"), devices
    try:
        devices = sorted(path.name for path in _INFINIBAND.iterdir())
    except OSError:
        devices = []
    return "enabled" if devices else "unavailable", devices


def parse_ibv_devices(output: str) -> list[str]:
    """Return the names in the table that `ibv_devices` prints below two lines of headings."""
    return [line.split()[0] for line in output.splitlines()[2:] if line.strip()]


def _output_of(*command: str) -> str:
    """Return what a program prints; empty if it fails, or this system does not have it."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
