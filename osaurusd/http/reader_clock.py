"""How long a client has taken nothing of what waits for it."""

import asyncio

from osaurusd.log import get_logger

log = get_logger(__name__)

# How often a client that does not read is looked at before it is given up.
LOOKS = 8


class ReaderClock:
    """Runs while there are unsent bytes. A client that takes none of them for `seconds` is dropped.

    One that takes some, however slowly, is not: what counts is whether they become fewer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._read_at = 0.0

    def start(self, transport: asyncio.Transport) -> None:
        """There is something to be read from now on."""
        self._unsent_bytes = transport.get_write_buffer_size()
        self._read_at = asyncio.get_running_loop().time()
        self._wait(transport)

    def stop(self) -> None:
        """Everything has been read, or nobody waits for that any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def look(self, transport: asyncio.Transport) -> None:
        """See whether something has been read since the last look."""
        unsent, now = transport.get_write_buffer_size(), asyncio.get_running_loop().time()
        if unsent < self._unsent_bytes:
            self._read_at = now
        self._unsent_bytes = unsent
        if now - self._read_at < self._seconds:
            self._wait(transport)
            return
        self._handle = None
        log.info("dropped a client that does not read", seconds=self._seconds, unsent_bytes=unsent)
        transport.abort()

    def _wait(self, transport: asyncio.Transport) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(self._seconds / LOOKS, self.look, transport)
