"""Keeping a Mac from falling asleep while there is work, and only then."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from osaurusd.log import get_logger

log = get_logger(__name__)

# -i: the display may go dark, the system may not idle to sleep; -w: it ends with us however we end. See caffeinate(8).
COMMAND = ("caffeinate", "-i", "-w", str(os.getpid()))

# Sleep comes after minutes: work that is shorter than this needs no process of its own.
DELAY_SECONDS = 5.0


class Awake:
    """Runs a process that prevents sleep while anybody holds it. On systems other than macOS it does nothing.

    Args:
        platform: as `sys.platform` names it.
        command: prevents sleep until it is ended.
        delay: how long something must be held, in seconds, before the command is started.
    """

    def __init__(
        self, *, platform: str = sys.platform, command: Sequence[str] = COMMAND, delay: float = DELAY_SECONDS
    ) -> None:
        self._works = platform == "darwin"
        self._command = command
        self._delay = delay
        self._holders = 0
        self._preventing: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Prevent sleep while the block runs."""
        self._holders += 1
        if self._works and self._preventing is None:
            self._preventing = asyncio.create_task(self._prevent())
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders and self._preventing is not None:
                self._preventing.cancel()
                self._preventing = None

    async def _prevent(self) -> None:
        await asyncio.sleep(self._delay)
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.DEVNULL)
        except OSError as error:
            log.warning("sleep cannot be prevented", error=str(error))
            return
        try:
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await asyncio.shield(process.wait())
