"""Import libraries without parts that osaurusd does not use: up to a third of the start-up time of a process.

Other modules import structlog from here.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """Hide rich from structlog, which imports it, if it is installed, for tracebacks that osaurusd does not show."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes `import rich` fail
    try:
        yield
    finally:
        del sys.modules["rich"]


@contextlib.contextmanager
def without_ca_certificates() -> Iterator[None]:
    """Import aiohttp without the system's CA certificates, which it reads twice: 0.1 s and 2 MB.

    They are those of its HTTP client. What the daemon fetches, it fetches with a TLS context of its own.
    """
    previous = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        yield
    finally:
        if previous is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = previous


def skip_packages(*names: str) -> None:
    """Let the modules of packages be imported without the packages themselves, for processes that need little of them.

    The package `mlx_lm` imports transformers, and `gguf` imports what writes files: both take longer than converting a
    small model. Call this before anything imports the packages.
    """
    for name in names:
        if (spec := importlib.util.find_spec(name)) is not None:
            # Created, but not executed.
            sys.modules.setdefault(name, importlib.util.module_from_spec(spec))


with _without_rich():
    import structlog

__all__ = ["skip_packages", "structlog", "without_ca_certificates"]
