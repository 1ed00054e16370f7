"""What a router relies on: `osaurusctl drain`, the shutdown, metrics of the load, and request ids."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from openai import APIError, InternalServerError, OpenAI

from tests import daemons
from tests.conftest import TINY
from tests.daemons import Daemon, suspended, wait_until
from tests.models import NO_END_TOKEN, make_tiny

TOKENS = 200
LOAD_METRICS = ("osaurus_running_requests", "osaurus_queued_requests", "osaurus_kv_cache_usage_ratio")

# OpenAI's client opens WebSockets in a way that the library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:connect.* must be used as a context manager:DeprecationWarning")


@pytest.fixture
def model(home: Path, tiny_tokenizer: Path) -> Path:
    """The home directory of a daemon with a tiny model, which generates until its limit."""
    options = {"max_position_embeddings": 32768, "eos_token_id": NO_END_TOKEN, "tie_word_embeddings": False}
    make_tiny(home / "models" / TINY, tiny_tokenizer, **options)
    return home


def ctl(home: Path, *arguments: str) -> Any:
    """Run a command of the CLI, and return its JSON."""
    result = daemons.ctl(home, "--json", *arguments)
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout)


def connect(daemon: Daemon) -> OpenAI:
    return OpenAI(base_url=daemon.url, api_key="x", max_retries=0)


def status(daemon: Daemon, path: str) -> int:
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname, address.port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def events_of(connection: Any) -> Iterator[Any]:
    """Yield the events of a WebSocket until a response is final."""
    while True:
        event = connection.recv()
        yield event
        if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            return


def test_running_requests_finish_and_new_ones_are_rejected_also_after_a_restart(model: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with daemons.running(model) as daemon, connect(daemon) as client, client.responses.connect() as socket:
        with ThreadPoolExecutor() as executor, loaded_and_suspended(model, daemon):
            background = client.responses.create(model=TINY, input="Hello", max_output_tokens=TOKENS, background=True)
            socket.response.create(model=TINY, input="Hello", max_output_tokens=TOKENS)
            stream = executor.submit(finish_reason, client)
            wait_until(lambda: in_flight(daemon) == 3)

            assert 3 == ctl(model, "drain")["requests"]
            with pytest.raises(InternalServerError) as rejected:
                client.chat.completions.create(model=TINY, messages=messages)
            paths = ("/health/ready", "/health/live", "/health")
            assert (503, 200, 200) == tuple(status(daemon, path) for path in paths)
        assert (503, "draining") == (rejected.value.status_code, rejected.value.code)
        assert "5" == rejected.value.response.headers["retry-after"]

        assert "length" == stream.result()
        assert "response.incomplete" == [event.type for event in events_of(socket)][-1]
        assert 0 == ctl(model, "drain", "--wait")["requests"]
        final = client.responses.retrieve(background.id)
        assert (TOKENS, "incomplete") == (final.usage.output_tokens, final.status)
        socket.response.create(model=TINY, input="Hello")
        assert "draining" == next(events_of(socket)).error.code
        daemon.wait_for("drained")

    with daemons.running(model) as daemon, connect(daemon) as client:
        assert 503 == status(daemon, "/health/ready")
        assert ctl(model, "status")["drain"]["draining"]
        # The model can be loaded before the first request.
        assert "ready" == ctl(model, "load", TINY)["state"]
        ctl(model, "undrain")
        assert 200 == status(daemon, "/health/ready")
        reply = client.chat.completions.create(model=TINY, messages=messages, max_tokens=2)
        assert 2 == reply.usage.completion_tokens


@contextlib.contextmanager
def loaded_and_suspended(home: Path, daemon: Daemon) -> Iterator[None]:
    """Load the model, and stop its worker while the block runs, so that no request finishes."""
    ctl(home, "load", TINY)
    with suspended(daemon.wait_for("loaded")["pid"]):
        yield


def finish_reason(client: OpenAI) -> str | None:
    """Stream a chat, and return why it ended."""
    messages = [{"role": "user", "content": "Hello"}]
    stream = client.chat.completions.create(model=TINY, messages=messages, max_tokens=TOKENS, stream=True)
    return [chunk.choices[0].finish_reason for chunk in stream][-1]


def in_flight(daemon: Daemon) -> int:
    return sum(worker["in_flight"] for worker in daemon.admin("GET", "/v0/workers")[1])


def metric(daemon: Daemon, name: str) -> float:
    with urlopen(f"{daemon.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def test_load_is_visible_to_routers_and_a_lost_request_is_known_by_its_id(model: Path) -> None:
    # Many tokens, so that the stream still runs when the worker is killed, also on a busy machine.
    body = {"model": TINY, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 30_000}
    with daemons.running(model) as daemon, connect(daemon) as client:
        assert "unloaded" == client.models.retrieve(TINY).model_extra["state"]
        assert [0, 0, 0] == [metric(daemon, name) for name in LOAD_METRICS]

        stream = client.chat.completions.create(**body, stream=True, extra_headers={"X-Request-Id": "trace-7"})
        next(stream)
        assert "loaded" == client.models.retrieve(TINY).model_extra["state"]
        assert [1, 0] == [metric(daemon, name) for name in LOAD_METRICS[:2]]
        wait_until(lambda: 0 < metric(daemon, LOAD_METRICS[2]) <= 1)

        os.kill(daemon.wait_for("loaded")["pid"], signal.SIGKILL)
        with pytest.raises(APIError):
            list(stream)
        assert ["trace-7"] == daemon.wait_for("worker lost")["requests"]
        wait_until(lambda: [0, 0, 0] == [metric(daemon, name) for name in LOAD_METRICS])


def test_daemon_that_shuts_down_rejects_requests_over_open_connections(model: Path) -> None:
    body = {"model": TINY, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS}
    with daemons.running(model) as daemon, connect(daemon) as client:
        address = urlsplit(daemon.url)
        with contextlib.closing(HTTPConnection(address.hostname, address.port, timeout=60)) as idle:
            idle.request("GET", "/health/ready")
            assert b"ok" in idle.getresponse().read()
            with ThreadPoolExecutor() as executor, loaded_and_suspended(model, daemon):
                stream = executor.submit(finish_reason, client)
                wait_until(lambda: in_flight(daemon) == 1)
                daemon.process.send_signal(signal.SIGTERM)
                daemon.wait_for("shutting down")
                idle.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
                response = idle.getresponse()
                error = json.load(response)["error"]

        assert (503, "5", "shutting_down") == (response.status, response.getheader("Retry-After"), error["code"])
        assert "length" == stream.result()
        assert 0 == daemon.stop()
    assert not daemon.socket.exists()
