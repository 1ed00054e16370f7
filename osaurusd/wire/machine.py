"""Which machines osaurusd runs on."""

import os

MACOS_VERSION = 14
SUPPORTED = f"macOS {MACOS_VERSION} or newer on Apple silicon, and Linux"

# The kernel's version. It is more reliable than `platform.mac_ver`, which some builds of Python answer with 10.16.
_DARWIN_OF_MACOS_14 = 23


class UnsupportedMachine(Exception):
    """osaurusd does not run on this machine; the message explains why, and what to do."""


def check(system: str | None = None, release: str | None = None, architecture: str | None = None) -> None:
    """Check this machine.

    Args:
        system, release, architecture: as `uname` reports them; None means those of this process.

    Raises:
        UnsupportedMachine: osaurusd does not run here.
    """
    name = os.uname()
    system, release, architecture = system or name.sysname, release or name.release, architecture or name.machine
    if system == "Linux":
        return
    if system != "Darwin":
        raise UnsupportedMachine(f"osaurusd does not support {system}; it supports {SUPPORTED}")
    if architecture != "arm64":
        raise UnsupportedMachine(
            f"osaurusd requires Apple silicon, but this Python runs on {architecture}; on a Mac with Apple silicon, "
            "install osaurusd with an arm64 Python"
        )
    if int(release.split(".")[0]) < _DARWIN_OF_MACOS_14:
        raise UnsupportedMachine(
            f"osaurusd requires macOS {MACOS_VERSION} or newer, but this Mac runs an older one (Darwin {release}); "
            "update macOS"
        )
