"""The daemon under fire: sends it requests, and says whether an answer is one."""

import contextlib
import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from osaurusd.http.errors import STATUS
from osaurusd.wire.errors import ErrorCode
from tests.daemons import Daemon

# Nothing here takes a second on a quiet machine.
HANG_SECONDS = 60

OBJECTS = {"chat.completion", "text_completion"}
OUR_FAULT = {status for code, status in STATUS.items() if status >= 500} | {429}


@dataclass
class Reply:
    """An answer whole."""

    status: int
    kind: str
    body: bytes

    def judge(self) -> None:
        """Raise AssertionError unless it is a right answer, or a refusal in the envelope that is not our fault."""
        assert self.status not in OUR_FAULT, self
        if self.kind.startswith("text/event-stream"):
            self._judge_events()
            return
        assert "application/json" == self.kind, self
        # Infinities and NaN are no JSON.
        value = json.loads(self.body, parse_constant=lambda word: 1 / 0)
        if self.status == 200:
            assert value["object"] in OBJECTS, self
            assert value["choices"], self
        else:
            judge_error(value, self.status)

    def _judge_events(self) -> None:
        assert 200 == self.status
        events = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        *chunks, end = events
        assert chunks, self
        assert "[DONE]" == end, self
        for chunk in chunks:
            assert {"id", "object", "choices"} <= json.loads(chunk).keys()


def judge_error(value: Any, status: int) -> None:
    assert ["error"] == list(value)
    error = value["error"]
    assert ["message", "type", "param", "code"] == list(error)
    assert error["message"]
    assert status == STATUS[ErrorCode(error["code"])]


class Target:
    """Speaks to one daemon over a connection that is kept; `tried` counts what was sent."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.tried = 0
        self._address = urlsplit(daemon.url).netloc
        self._connection: HTTPConnection | None = None

    def processes(self) -> dict[str, Any]:
        """Which processes serve."""
        status = self.daemon.admin("GET", "/v0/status")[1]
        return {"daemon": status["pid"], "workers": [worker["pid"] for worker in status["workers"]]}

    def post(self, path: str, body: bytes) -> Reply:
        """The answer to these bytes as a JSON body."""
        self.tried += 1
        for attempt in (1, 2):
            connection = self._connected()
            try:
                connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
                answer = connection.getresponse()
                return Reply(answer.status, answer.getheader("Content-Type", ""), answer.read())
            except (HTTPException, ConnectionError):
                # A connection that was closed after an earlier answer.
                self.close()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def _connected(self) -> HTTPConnection:
        if self._connection is None:
            self._connection = HTTPConnection(self._address, timeout=HANG_SECONDS)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
        self._connection = None
