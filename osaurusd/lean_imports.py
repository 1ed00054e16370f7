"""Import libraries without parts that osaurusd does not use: up to a third of the start-up time of a process.

Other modules import structlog from here.
"""

import contextlib
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


with _without_rich():
    import structlog

__all__ = ["structlog", "without_ca_certificates"]
