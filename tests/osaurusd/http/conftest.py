import asyncio
import json

import pytest

from osaurusd import log


@pytest.fixture
def logged(tmp_path):
    """Logs to a file; a call stops that and returns the lines."""
    file = tmp_path / "osaurusd.log"
    configured = log.configured("info", file, None)
    configured.__enter__()
    stopped = []

    def lines():
        if not stopped:
            stopped.append(configured.__exit__(None, None, None))
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    yield lines
    lines()


class LoopClock:
    """The time of the event loop, which stands still until a test advances it."""

    def __init__(self, loop):
        self._now = loop.time()
        loop.time = lambda: self._now

    def advance(self, seconds):
        """Let timers run that are due in `seconds`, in the next iteration of the loop."""
        self._now += seconds


@pytest.fixture
async def loop_clock():
    """Controls when timers run. Timeouts of the test itself do not end while the time stands still."""
    loop = asyncio.get_running_loop()
    yield LoopClock(loop)
    del loop.time
