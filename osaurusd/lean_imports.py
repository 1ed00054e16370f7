"""Import structlog and aiohttp without parts that the daemon does not use: a fourth of its start-up time.

Must be imported before anything else that imports these libraries.
"""

import contextlib
import ssl
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """Hide rich from structlog, which imports it, if it is installed, for tracebacks that the daemon does not show."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes `import rich` fail
    try:
        yield
    finally:
        del sys.modules["rich"]


@contextlib.contextmanager
def _without_ca_certificates() -> Iterator[None]:
    """Keep aiohttp from parsing the system's CA certificates for its HTTP client, which the daemon does not use."""
    load_default_certs = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]  # restored below
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load_default_certs  # type: ignore[method-assign]  # the original


with _without_rich():
    import structlog

with _without_ca_certificates():
    import aiohttp

__all__ = ["aiohttp", "structlog"]
