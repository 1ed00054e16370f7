"""Which Python and which packages a process has."""

import importlib.metadata
import platform
import sys

from osaurusd.wire.diagnosis import Installation

PACKAGES = ("osaurusd", "mlx", "mlx-lm", "huggingface-hub", "aiohttp", "msgspec")
"""Packages whose versions decide what the daemon does."""


def installation() -> Installation:
    """Python and packages of this process, as they are on disk now."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Installation(python=platform.python_version(), executable=sys.executable, packages=packages)
