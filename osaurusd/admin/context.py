"""What admin handlers need beside catalog and pool."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from osaurusd.catalog.imports import Imports
from osaurusd.catalog.pulls import Pulls
from osaurusd.wire.paths import Paths


@dataclass(frozen=True)
class Daemon:
    """The running daemon: its identity, and how to end it. `started_at` is on the monotonic clock, in seconds."""

    instance: str
    started_at: float
    endpoints: list[str]
    paths: Paths
    stop: Callable[[], None]


DAEMON = web.AppKey("DAEMON", Daemon)
IMPORTS = web.AppKey("IMPORTS", Imports)
PULLS = web.AppKey("PULLS", Pulls)
