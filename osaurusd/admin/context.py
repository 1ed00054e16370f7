"""What admin handlers need beside catalog and pool."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from osaurusd.downloads.manager import Pulls
from osaurusd.http.exposure import Exposure
from osaurusd.http.keyring import Keyring
from osaurusd.imports.manager import Imports
from osaurusd.pool.pins import Pins
from osaurusd.wire.diagnosis import Installation
from osaurusd.wire.paths import Paths


@dataclass(frozen=True)
class Daemon:
    """The running daemon: its identity, and how to end it. `started_at` is on the monotonic clock, in seconds.

    `installation` is what was there when it started: an upgrade in place changes the files and not the process.
    `faults` is what went wrong at the start, a line each.
    """

    instance: str
    started_at: float
    endpoints: list[str]
    paths: Paths
    stop: Callable[[], None]
    installation: Installation
    faults: list[str] = field(default_factory=list)


DAEMON = web.AppKey("DAEMON", Daemon)
EXPOSURE = web.AppKey("EXPOSURE", Exposure)
KEYRING = web.AppKey("KEYRING", Keyring)
PINS = web.AppKey("PINS", Pins)
IMPORTS = web.AppKey("IMPORTS", Imports)
PULLS = web.AppKey("PULLS", Pulls)
