"""API keys with real daemons, clients and sockets."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
from openai import OpenAI

from osaurusd.http.api_keys import ApiKeys
from tests import daemons
from tests.daemons import Daemon, UnixConnection, ctl
from tests.integration.access import TIMEOUT_SECONDS, create, serve

EVERYWHERE = ("--host", "0.0.0.0")


def local(daemon: Daemon) -> str:
    """Return the loopback URL of a daemon that listens on all addresses."""
    return daemon.url.replace("0.0.0.0", "127.0.0.1")


def status_of(url: str, **headers: str) -> int:
    """Send a GET with these headers (`_` stands for `-`), and return the status."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return int(httpx2.get(url, headers=sent, timeout=TIMEOUT_SECONDS).status_code)


def status_of_models(url: str, **headers: str) -> int:
    """Request the models of the daemon at this URL as `status_of` does."""
    return status_of(f"{url}/v1/models", **headers)


@pytest.fixture
def key(home: Path) -> str:
    """An API key of the home."""
    return ApiKeys(home / "state" / "keys.json").create("first").key


def test_daemon_does_not_start_exposed_without_a_key(home: Path, key: str) -> None:
    """Nor with a damaged key file, which the first start moves aside."""
    (home / "state" / "keys.json").write_text('{"version": 1, "keys": [')
    damaged = serve(home, *EVERYWHERE)
    assert 1 == damaged.returncode
    assert "keys.damaged.json" in damaged.stderr.splitlines()[-1]

    run = serve(home, "--host", "::")
    assert 1 == run.returncode
    assert "other machines can connect to ::, but there is no API key" in run.stderr
    for way_out in ('"osaurusctl key create"', "`server.host`", "`--insecure`"):
        assert way_out in run.stderr
    assert "Traceback" not in run.stderr


def test_insecure_daemon_serves_without_keys_and_warns(home: Path) -> None:
    with daemons.running(home, *EVERYWHERE, "--insecure") as daemon:
        assert 200 == status_of_models(local(daemon))
        assert 200 == status_of_models(local(daemon), authorization="Basic whatever")
        assert "warning" == daemon.wait_for("other machines can connect without an API key")["level"]
        protection = daemon.admin("GET", "/v0/status")[1]["protection"]
        assert (True, False) == (protection["exposed"], protection["key_required"])
        assert "other machines can connect, no API key required, no TLS" in ctl(home, "status").stdout


def test_openai_client_is_served_until_its_key_is_revoked(home: Path, key: str) -> None:
    with daemons.running(home, *EVERYWHERE) as daemon:
        url = local(daemon)
        second = create(daemon, "second")
        with contextlib.ExitStack() as stack:

            def client(api_key: str) -> OpenAI:
                return stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0))

            for good in (client(key), client(second["key"])):
                assert [] == good.models.list().data
                with pytest.raises(openai.NotFoundError):
                    good.chat.completions.create(model="none", messages=[{"role": "user", "content": "Hi."}])
            for bad in (client("not-needed"), client(key[:-1])):
                with pytest.raises(openai.AuthenticationError) as error:
                    bad.chat.completions.create(model="none", messages=[{"role": "user", "content": "Hi."}])
                assert "invalid_api_key" == error.value.code
                assert "Bearer" == error.value.response.headers["WWW-Authenticate"]

            assert 200 == daemon.admin("POST", "/v0/keys/revoke", {"id": second["id"]})[0]
            with pytest.raises(openai.AuthenticationError):
                client(second["key"]).models.list()
            assert [] == client(key).models.list().data

        assert 200 == status_of_models(url, x_api_key=key)
        assert 401 == status_of_models(url, x_api_key=second["key"])
        assert 401 == status_of_models(url)
        assert 200 == status_of(f"{url}/health")
        assert 401 == status_of(f"{url}/metrics")
        assert 404 == status_of(f"{url}/v0/keys", x_api_key=key)
        keys = daemon.admin("GET", "/v0/keys")[1]
        assert [("first", True)] == [(info["name"], info["last_used"] is not None) for info in keys]
        arguments = " ".join(psutil.Process(daemon.process.pid).cmdline())
        outputs = ctl(home, "status").stdout, ctl(home, "doctor").stdout, ctl(home, "key", "ls", "--json").stdout
        logged = json.dumps(daemon.log)
    assert "without TLS" in outputs[1]
    written = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    for secret in (key, second["key"]):
        assert secret not in arguments + logged + "".join(outputs)
        assert secret.encode() not in written


def test_service_waits_for_its_first_key_without_listening(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with supervised(home, *EVERYWHERE, "--port", str(port)):
        waiting = await_status(home, lambda status: bool(status["faults"]))
        assert not waiting["serving"]
        assert "there is no API key" in waiting["faults"][0]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        assert "there is no API key" in ctl(home, "status").stdout

        created = ctl(home, "key", "create", "phone")
        assert (0, created.stdout) == (created.returncode, f"{created.stdout.strip()}\n")
        await_status(home, lambda status: bool(status["serving"]))
        assert 200 == status_of_models(f"http://127.0.0.1:{port}", authorization=f"Bearer {created.stdout.strip()}")
        assert 401 == status_of_models(f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def supervised(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    env = daemons.environment(home, OSAURUS_SUPERVISED="systemd")
    process = subprocess.Popen(
        [sys.executable, "-m", "osaurusd", "serve", *arguments], env=env, stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert 0 == process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()
            process.wait()


def await_status(home: Path, is_expected: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll the daemon's status until it is as expected."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        connection = UnixConnection(home / "run" / "admin.sock")
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/v0/status", headers={"Host": "osaurusd", "Osaurus-Api": "1"})
            status: dict[str, Any] = json.loads(connection.getresponse().read())
            if is_expected(status):
                return status
        assert time.monotonic() < deadline, "the status is never as expected"
        time.sleep(0.05)


# Moves the socket to the descriptor that systemd would pass.
_ACTIVATE = (
    "import os, sys\n"
    "os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'osaurusd', 'serve'])\n"
)


def test_activated_sockets_are_judged_by_their_bound_address(home: Path) -> None:
    (home / "config.toml").write_text('[server]\nhost = "localhost"\n')
    with socket.create_server(("0.0.0.0", 0)) as listener:
        run = subprocess.run(
            [sys.executable, "-c", _ACTIVATE, str(listener.fileno())],
            env=daemons.environment(home),
            pass_fds=[listener.fileno()],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    assert 1 == run.returncode
    assert "other machines can connect to 0.0.0.0, but there is no API key" in run.stderr


def test_reload_that_requires_a_key_fails_until_one_exists(home: Path) -> None:
    config = home / "config.toml"
    config.write_text("[server]\ninsecure = true\n")
    with daemons.running(home, *EVERYWHERE) as daemon:
        url = local(daemon)
        config.write_text("")
        status, response = daemon.admin("POST", "/v0/reload", {})
        assert (500, "config_error") == (status, response["error"]["code"])
        assert "there is no API key" in response["error"]["message"]
        assert 200 == status_of_models(url)

        created = create(daemon)
        assert (200, {"applied": ["server.insecure"], "needs_restart": []}) == daemon.admin("POST", "/v0/reload", {})
        assert [401, 200] == [status_of_models(url), status_of_models(url, x_api_key=created["key"])]

        config.write_text("[server]\ntrust_loopback = true\n")
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
        assert 200 == status_of_models(url)
        for address in external_addresses()[:1]:
            there = url.replace("127.0.0.1", address)
            assert [401, 200] == [status_of_models(there), status_of_models(there, x_api_key=created["key"])]

        daemon.admin("POST", "/v0/keys/revoke", {"id": created["id"]})
        assert "there is none" in daemon.admin("GET", "/v0/status")[1]["faults"][0]


def external_addresses() -> list[str]:
    entries = [entry for interface in psutil.net_if_addrs().values() for entry in interface]
    ipv4 = [entry.address for entry in entries if entry.family == socket.AF_INET]
    return [address for address in ipv4 if not address.startswith("127.")]


def test_keys_are_managed_from_the_command_line_and_required_on_loopback_only_if_configured(home: Path) -> None:
    with daemons.running(home) as daemon:
        assert "[]\n" == ctl(home, "key", "ls", "--json").stdout
        created = json.loads(ctl(home, "--json", "key", "create", "Anna's laptop").stdout)
        assert ["id", "name", "created", "key"] == list(created)
        listed = ctl(home, "key", "ls").stdout
        assert [["ID", "NAME"], [created["id"], "Anna's"]] == [line.split()[:2] for line in listed.splitlines()]
        assert listed.rstrip().endswith("never")
        assert 1 == ctl(home, "key", "create", "\x1b[2J").returncode

        for headers in ({}, {"authorization": "Bearer not-needed"}):
            assert 200 == status_of_models(daemon.url, **headers)
        (home / "config.toml").write_text("[server]\nrequire_key = true\n")
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
        assert [401, 200] == [status_of_models(daemon.url), status_of_models(daemon.url, x_api_key=created["key"])]
        # Only the user can open the Unix socket.
        assert 200 == daemon.admin("GET", "/v1/models")[0]

        assert "revoked key" in ctl(home, "key", "revoke", created["id"]).stdout
        assert 401 == status_of_models(daemon.url, x_api_key=created["key"])
        again = ctl(home, "key", "revoke", created["id"])
        assert (1, True) == (again.returncode, "no API key has the id" in again.stderr)
