"""Fixtures for unit tests of `osaurusd`."""

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster

# Functions of these modules may block the event loop: they run at start-up, on reload and at exit.
START_UP_MODULES = (
    "osaurusd/config/loading.py",
    "osaurusd/log.py",
    "osaurusd/pool/config.py",
    "osaurusd/platform/state_file.py",
    "osaurusd/wire/files.py",
    "osaurusd/http/listen.py",
    "osaurusd/http/tls.py",
)


class EveryFunction(frozenset[str]):
    def __contains__(self, _name: object) -> bool:
        return True


@functools.cache
def blocking_guard() -> BlockBuster:
    """Built once: it wraps dozens of functions."""
    guard = BlockBuster("osaurusd")
    for function in guard.functions.values():
        for module in START_UP_MODULES:
            function.can_block_in(module, EveryFunction())
    return guard


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Make a blocking call on the event loop raise `BlockingError`, if the daemon's code makes it.

    Child processes (the `worker` packages) serve nothing else while they block.
    """
    is_async = request.node.get_closest_marker("asyncio") is not None
    if not is_async or "worker" in request.path.parts:
        yield
        return
    guard = blocking_guard()
    guard.activate()
    yield
    guard.deactivate()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder for imported models."""
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A Hugging Face cache."""
    path = tmp_path / "hub"
    path.mkdir()
    return path


class LoopClock:
    """The time of the event loop, which stands still until a test advances it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now = loop.time()
        loop.time = lambda: self._now

    def advance(self, seconds: float) -> None:
        """Let timers run that are due in `seconds`, in the next iteration of the loop."""
        self._now += seconds


@pytest.fixture
async def loop_clock() -> AsyncIterator[LoopClock]:
    """Controls when timers run. Timeouts of the test itself do not end while the time stands still."""
    loop = asyncio.get_running_loop()
    yield LoopClock(loop)
    del loop.time
