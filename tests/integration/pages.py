"""Reads the event stream of the page."""

import contextlib
import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

Event = tuple[str, dict[str, Any]]

TIMEOUT_SECONDS = 60


@contextlib.contextmanager
def open_page(url: str, **headers: str) -> Iterator[Iterator[Event]]:
    """Open the event stream of the server at `url`, and yield its events while the block runs."""
    address = urlsplit(url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/ui/stream", headers=headers)
        with connection.getresponse() as response:
            assert 200 == response.status, response.read()
            yield read_events(response)
    finally:
        connection.close()


def read_events(response: HTTPResponse) -> Iterator[Event]:
    """Yield the name and the data of each event."""
    name = ""
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def wait_for(
    events: Iterator[Event], name: str, condition: Callable[[dict[str, Any]], object] = bool
) -> dict[str, Any]:
    """Return the data of the next event with this name that meets the condition."""
    return next(data for kind, data in events if kind == name and condition(data))
