"""The daemon under test, and checks of its responses."""

import contextlib
import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from osaurusd.http.errors import STATUS
from osaurusd.wire.errors import ErrorCode
from tests.daemons import Daemon

# Every request takes less than a second on an idle machine.
TIMEOUT_SECONDS = 60

OBJECTS = {"chat.completion", "text_completion"}
SERVER_FAULTS = {status for status in STATUS.values() if status >= 500} | {429}


@dataclass
class Response:
    """A complete response."""

    status: int
    content_type: str
    body: bytes

    def check(self) -> None:
        """Assert that this is a valid response, or an error in the envelope that the client caused."""
        assert self.status not in SERVER_FAULTS, self
        if self.content_type.startswith("text/event-stream"):
            self._check_events()
            return
        assert "application/json" == self.content_type, self
        # Python accepts Infinity and NaN, which are not valid JSON.
        value = json.loads(self.body, parse_constant=lambda word: 1 / 0)
        if self.status == 200:
            assert value["object"] in OBJECTS, self
            assert value["choices"], self
        else:
            check_error(value, self.status)

    def check_other(self) -> None:
        """Assert the same for an API whose responses have other formats."""
        assert self.status not in SERVER_FAULTS - {403}, self
        if self.content_type.startswith("text/event-stream"):
            events = [line[7:] for line in self.body.decode().splitlines() if line.startswith("event: ")]
            ends = {"message_stop", "response.completed", "response.incomplete", "response.failed"}
            assert events[-1] in ends, self
        elif self.content_type == "application/x-ndjson":
            assert json.loads(self.body.splitlines()[-1])["done"], self
        else:
            value = json.loads(self.body, parse_constant=lambda word: 1 / 0)
            assert self.status == 200 or value["error"], self

    def _check_events(self) -> None:
        assert 200 == self.status
        *chunks, end = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        assert chunks, self
        assert "[DONE]" == end, self
        for chunk in chunks:
            assert {"id", "object", "choices"} <= json.loads(chunk).keys()


def check_error(value: Any, status: int) -> None:
    assert ["error"] == list(value)
    error = value["error"]
    assert ["message", "type", "param", "code"] == list(error)
    assert error["message"]
    assert status == STATUS[ErrorCode(error["code"])]


class Target:
    """Sends requests to a daemon over one connection. `sent` counts them."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.sent = 0
        self._address = urlsplit(daemon.url).netloc
        self._connection: HTTPConnection | None = None

    def processes(self) -> dict[str, Any]:
        """Return the process ids of the daemon and its workers."""
        status = self.daemon.admin("GET", "/v0/status")[1]
        return {"daemon": status["pid"], "workers": [worker["pid"] for worker in status["workers"]]}

    def post(self, path: str, body: bytes) -> Response:
        """Send these bytes as a JSON body."""
        self.sent += 1
        for attempt in (1, 2):
            connection = self._connect()
            try:
                connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
                response = connection.getresponse()
                return Response(response.status, response.getheader("Content-Type", ""), response.read())
            except (HTTPException, ConnectionError):
                # The daemon closed the connection after the previous response.
                self.close()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
        self._connection = None

    def _connect(self) -> HTTPConnection:
        if self._connection is None:
            self._connection = HTTPConnection(self._address, timeout=TIMEOUT_SECONDS)
        return self._connection
