"""Python and package versions of the current process."""

import platform
import sys

from osaurusd.wire.diagnosis import Installation

PACKAGES = ("osaurusd", "mlx", "mlx-lm", "mlx-vlm", "huggingface-hub", "aiohttp", "msgspec")
"""Packages whose versions affect the daemon's behavior."""


def installation() -> Installation:
    """Return the Python and package versions that are installed now."""
    # Only diagnoses and models that are distributed need it, not the start.
    import importlib.metadata  # noqa: PLC0415

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Installation(python=platform.python_version(), executable=sys.executable, packages=packages)
