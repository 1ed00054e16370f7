"""Admin API types for draining: the daemon finishes its requests and accepts no new ones."""

import msgspec


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start draining, or accept requests again if `draining` is false."""

    draining: bool = True


class DrainStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the daemon drains.

    Attributes:
        since: Unix seconds at which draining began; null unless the daemon drains.
        requests: requests in flight. While the daemon drains, the number only falls.
    """

    draining: bool = False
    since: float | None = None
    requests: int = 0
