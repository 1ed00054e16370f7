"""The memory that all requests in progress may use for their bodies and images."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from osaurusd.config import Config
from osaurusd.errors import TooManyRequests

_current: ContextVar["Reservation | None"] = ContextVar("current", default=None)


class BufferedBytes:
    """Counts the bytes of bodies and downloaded images.

    An image in a body needs no count of its own: its text is dropped when it is decoded.

    Args:
        config: returns the configuration in force.

    Attributes:
        count: the bytes in memory.
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self.count = 0

    @property
    def limit(self) -> int:
        return self._config().limits.max_buffered_bytes

    def find_reservation(self) -> "Reservation":
        """Return the reservation of the request that is being served, or a new one outside of requests."""
        return _current.get() or Reservation(self)


class Reservation:
    """The bytes of one request. A request that is alone gets as many as it needs: other limits bound its size."""

    def __init__(self, buffered: BufferedBytes) -> None:
        self._buffered = buffered
        self._count = 0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Have `find_reservation` return this reservation in the block."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def add(self, count: int) -> None:
        """Count bytes until `remove` or `release`, one of which is due even if this raises.

        Raises:
            TooManyRequests: the bytes of all requests exceed `limits.max_buffered_bytes`, and this one is not alone.
        """
        self._count += count
        self._buffered.count += count
        if self._buffered.count > max(self._buffered.limit, self._count):
            raise TooManyRequests(
                "the request bodies and images in memory reach the size that `limits.max_buffered_bytes` allows; retry "
                "later"
            )

    def remove(self, count: int) -> None:
        self._count -= count
        self._buffered.count -= count

    def release(self) -> None:
        """Remove all bytes."""
        self.remove(self._count)
