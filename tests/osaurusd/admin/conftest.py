"""A whole daemon in the test's process, without models in memory."""

import asyncio
import contextlib
import json
import socket
from types import SimpleNamespace

import aiohttp
import pytest

from osaurusd import log
from osaurusd.admin.daemon import DaemonInfo
from osaurusd.admin.degraded import DegradedMode, Startup
from osaurusd.app import Daemon
from osaurusd.config import Config, LiveConfig, Server
from osaurusd.http.api_keys import ApiKeys
from osaurusd.http.listen import listen_unix
from osaurusd.platform import service_manager
from osaurusd.wire import paths


class Operator:
    """A client of the admin API."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def send(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, object]:
        """Send a request; return the status and the decoded body (a list of objects for JSON lines)."""
        sent = {"Host": "osaurusd", "Osaurus-Api": "1", **headers}
        if body is None and method == "POST":
            body = {}
        async with self._session.request(method, f"http://osaurusd{path}", json=body, headers=sent) as response:
            text = await response.text()
            if response.content_type == "application/jsonl":
                return response.status, [json.loads(line) for line in text.splitlines()]
            return response.status, json.loads(text)

    async def get(self, path: str) -> object:
        status, body = await self.send("GET", path)
        assert 200 == status, body
        return body

    async def post(self, path: str, body: object = None) -> object:
        status, reply = await self.send("POST", path, body)
        assert status in (200, 201, 202), reply
        return reply

    async def error(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str, str]:
        """Send a request that fails; return the status, the code and the message."""
        status, reply = await self.send(method, path, body, **headers)
        return status, reply["error"]["code"], reply["error"]["message"]


@pytest.fixture
def environment(home, monkeypatch):
    """What a daemon is made of. `environment.config` can be replaced to change the configuration on disk."""
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    places = paths.resolve({"OSAURUS_HOME": str(home)})
    for folder in (places.state_dir, places.models_dir, places.log_dir):
        folder.mkdir()
    return SimpleNamespace(
        config=Config(server=Server(port=0)),
        info=DaemonInfo(places),
        keys=ApiKeys(places.state_dir / "keys.json"),
        paths=places,
    )


@pytest.fixture
async def stop():
    return service_manager.StopRequest()


@pytest.fixture
async def operator(environment):
    connector = aiohttp.UnixConnector(str(environment.paths.socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Operator(session)


@pytest.fixture
async def daemon(environment, operator, stop):
    """A daemon that serves on a free port; yields its task."""
    startup = Startup(lambda: environment.config, [], environment.keys)
    prerequisites = startup.attempt()
    live = LiveConfig(prerequisites.config, startup.read)
    with (
        listen_unix(environment.paths.socket) as admin_socket,
        log.configured("info", environment.paths.log_file, None) as log_file,
    ):
        daemon = Daemon(prerequisites, live, environment.info, environment.keys, log_file, stop)
        task = asyncio.create_task(daemon.serve(admin_socket))
        yield task
        stop.requested.set()
        await task
    for sock in prerequisites.sockets:
        sock.close()


@pytest.fixture
async def degraded(environment, operator, stop):
    """Runs a daemon that lacks a prerequisite; yields the task that returns it."""

    @contextlib.asynccontextmanager
    async def run(read, inherited=()):
        startup = Startup(read, inherited, environment.keys)
        with listen_unix(environment.paths.socket) as admin_socket:
            mode = DegradedMode(startup, environment.info, admin_socket, environment.keys, stop.requested)
            task = asyncio.create_task(mode.run())
            try:
                yield task
            finally:
                stop.requested.set()
                if (prerequisites := await task) is not None:
                    for sock in prerequisites.sockets:
                        sock.close()

    return run


@pytest.fixture
def used_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
