"""Keep a Mac from idle sleep while there is work."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from osaurusd.log import get_logger

log = get_logger(__name__)

# -i prevents idle system sleep but lets the display sleep; -w exits with this process, however it ends. See
# caffeinate(8).
COMMAND = ("caffeinate", "-i", "-w", str(os.getpid()))

# The system sleeps after minutes of idling, so shorter work needs no assertion.
DELAY_SECONDS = 5.0


class PowerAssertion:
    """Prevents idle sleep while it has at least one holder. Does nothing on systems other than macOS.

    Args:
        platform: a value of `sys.platform`.
        command: prevents sleep until it is terminated.
        delay: seconds for which the assertion must be held before the command starts.
    """

    def __init__(
        self, *, platform: str = sys.platform, command: Sequence[str] = COMMAND, delay: float = DELAY_SECONDS
    ) -> None:
        self._supported = platform == "darwin"
        self._command = command
        self._delay = delay
        self._holders = 0
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the assertion while the block runs."""
        self._holders += 1
        if self._supported and self._task is None:
            self._task = asyncio.create_task(self._prevent_sleep())
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _prevent_sleep(self) -> None:
        await asyncio.sleep(self._delay)
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            log.warning("cannot prevent system sleep", error=str(error))
            return
        try:
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.shield(process.wait())
