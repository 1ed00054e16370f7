"""How far a pull is, told to the daemon a few times a second."""

import asyncio
import time
from collections import deque

from osaurusd.rpc import job, messages
from osaurusd.wire.pulls import PullStage

TICK_SECONDS = 0.25
_WINDOW_SECONDS = 5.0


class Meter:
    """Counts bytes. `present` is all that is here, of `total`; what was here before does not count for the rate.

    Args:
        send: takes the frames.
    """

    def __init__(self, send: job.Send) -> None:
        self._send = send
        self.stage = PullStage.RESOLVING
        self.commit: str | None = None
        self.note: str | None = None
        self.present = 0
        self.total = 0
        self.hashed = 0
        self.to_hash = 0
        self._arrived = 0
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._last: messages.Pulling | None = None

    def arrived(self, count: int) -> None:
        """Bytes have come over the network."""
        self.present += count
        self._arrived += count
        self.note = None

    def tell(self) -> None:
        """Send a frame, unless it would say what the last one said."""
        frame = self._frame()
        if frame != self._last:
            self._last = frame
            self._send(frame)

    async def run(self) -> None:
        """Tell for good."""
        while True:
            self.tell()
            await asyncio.sleep(TICK_SECONDS)

    def _frame(self) -> messages.Pulling:
        # Files are hashed while others still come; it is a stage of its own only for the last of them.
        hashing = self.stage is PullStage.DOWNLOADING and self.total > 0 and self.present >= self.total
        return messages.Pulling(
            stage=PullStage.VERIFYING if hashing else self.stage,
            done=self.present,
            total=self.total,
            hashed=self.hashed,
            to_hash=self.to_hash,
            bytes_per_second=round(self._rate()),
            commit=self.commit,
            note=self.note,
        )

    def _rate(self) -> float:
        now = time.monotonic()
        self._samples.append((now, self._arrived))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW_SECONDS:
            self._samples.popleft()
        (begin, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - begin) if end > begin else 0.0
