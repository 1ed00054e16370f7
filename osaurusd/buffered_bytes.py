"""The memory that all requests in progress may use for their bodies and images."""

from collections.abc import Callable

from osaurusd.config import Config
from osaurusd.errors import TooManyRequests


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

    def reserve(self, count: int) -> None:
        """Count bytes until `release`, which is due even if this raises.

        The first bytes are accepted at any size: other limits bound a single body or image.

        Raises:
            TooManyRequests: all of them exceed `limits.max_buffered_bytes`.
        """
        others = self.count
        self.count += count
        if others and self.count > self._config().limits.max_buffered_bytes:
            raise TooManyRequests(
                "the request bodies and images in memory reach the size that `limits.max_buffered_bytes` allows; retry "
                "later"
            )

    def release(self, count: int) -> None:
        self.count -= count
