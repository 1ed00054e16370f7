"""Import structlog without a library that osaurusd does not use: up to a fifth of the start-up time of a process.

Other modules import structlog from here.
"""

import contextlib
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


with _without_rich():
    import structlog

__all__ = ["structlog"]
