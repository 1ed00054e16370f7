"""Pairing of real daemons with `osaurusctl host`."""

import contextlib
import json
import re
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import daemons
from tests.conftest import temporary_home
from tests.daemons import Daemon

TIMEOUT_SECONDS = 60
LENT_BYTES = 10**9
ADDRESS_OF_B = daemons.second_address()


@contextlib.contextmanager
def host(address: str | None, home: Path | None = None) -> Iterator[Daemon]:
    """Run a daemon that accepts other hosts at an address."""
    with temporary_home() if home is None else contextlib.nullcontext(home) as directory:
        if address is not None:
            listen = f'[distributed]\nlisten = "{address}"\nlend_bytes = {LENT_BYTES}\n'
            (directory / "config.toml").write_text(listen)
        with daemons.running(directory) as daemon:
            yield daemon


def ctl(daemon: Daemon, *arguments: str, typed: str = "", code: int = 0) -> str:
    """Run a command, and return what it prints on both streams."""
    result = daemons.ctl(daemon.home, *arguments, typed=typed)
    output = result.stdout + result.stderr
    assert code == result.returncode, output
    return output


def offer(daemon: Daemon) -> tuple[str, str]:
    """Return a pairing code, and the URL for it."""
    output = ctl(daemon, "host", "code")
    code, url = output.split()[0], re.search(r"https://\S+", output)
    assert url is not None
    return code, url.group()


def hosts(daemon: Daemon) -> list[str]:
    return [each["name"] for each in json.loads(ctl(daemon, "host", "ls", "--json"))]


def events(daemon: Daemon) -> list[tuple[str, str]]:
    status, found = daemon.admin("GET", "/v0/events")
    assert 200 == status
    return [(event["kind"], event["host"]) for event in found if "host" in event]


@pytest.fixture(scope="module")
def a() -> Iterator[Daemon]:
    with host("127.0.0.1:0") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def b() -> Iterator[Daemon]:
    with host(f"{ADDRESS_OF_B}:0") as daemon:
        yield daemon


@pytest.fixture
def pair(a: Daemon, b: Daemon) -> tuple[Daemon, Daemon]:
    """Two hosts that call each other `a` and `b`."""
    if not hosts(a):
        code, url = offer(b)
        ctl(a, "host", "add", "b", url, "--as", "a", typed=f"{code}\n")
    return a, b


def test_hosts_are_paired_by_a_code(a: Daemon, b: Daemon) -> None:
    code, url = offer(b)
    assert re.fullmatch(r"[0-9A-Z]{4}(-[0-9A-Z]{4}){3}", code)
    wrong = ctl(a, "host", "add", "b", url, "--as", "a", typed="0000-0000-0000-0000\n", code=1)
    assert 'run "osaurusctl host code" there for another' in wrong
    assert f"paired with b at {url}" in ctl(a, "host", "add", "b", url, "--as", "a", typed=f"{code.lower()}\n")
    assert (["b"], ["a"]) == (hosts(a), hosts(b))
    assert ([("host_paired", "b")], [("host_paired", "a")]) == (events(a), events(b))
    for daemon in (a, b):
        for name in ("host.pem", "hosts.json"):
            assert 0o600 == stat.S_IMODE((daemon.home / "state" / name).stat().st_mode)


def test_the_list_names_url_link_and_fingerprint(pair: tuple[Daemon, Daemon]) -> None:
    a, _ = pair
    titles, row = ctl(a, "host", "ls").splitlines()
    assert ["NAME", "URL", "LINK ADDRESS", "FINGERPRINT", "PAIRED"] == re.split(r"\s{2,}", titles)
    assert re.match(rf"b +https://{re.escape(ADDRESS_OF_B)}:\d+ +automatic +[0-9a-f]{{16}}… +\d{{4}}-", row)


def test_a_pair_is_checked(pair: tuple[Daemon, Daemon]) -> None:
    a, _ = pair
    text = ctl(a, "host", "check", "b")
    assert "can run models together with this host" in text
    for label in ("system", "versions", "memory", "latency", "link", "clock", "RDMA"):
        assert re.search(rf"^ +{label} ", text, re.MULTILINE), text
    result: dict[str, Any] = json.loads(ctl(a, "host", "check", "--json"))
    assert result["ok"]
    (checked,) = result["hosts"]
    assert ("b", LENT_BYTES) == (checked["name"], checked["facts"]["lendable_bytes"])


def test_a_check_fails_when_a_host_does_not_lend(a: Daemon, b: Daemon, pair: tuple[Daemon, Daemon]) -> None:
    config = a.home / "config.toml"
    original = config.read_text()
    config.write_text(original.replace(str(LENT_BYTES), "0"))
    ctl(a, "reload")
    try:
        assert "a lends no memory" in ctl(b, "host", "check", code=1)
    finally:
        config.write_text(original)
        ctl(a, "reload")


def test_doctor_reports_the_port_and_the_hosts(pair: tuple[Daemon, Daemon]) -> None:
    a, _ = pair
    checks = json.loads(ctl(a, "doctor", "--json"))["checks"]
    details = [each["detail"] for each in checks if each["name"] == "hosts"]
    assert 2 == len(details)
    assert details[0].startswith("paired hosts can connect to 127.0.0.1:")
    assert "1 of 1 paired hosts respond" == details[1]


def test_unknown_names_and_names_in_use_are_errors(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    assert 'no host "x" is paired (paired hosts: b)' in ctl(a, "host", "check", "x", code=1)
    assert 'no host "x" is paired' in ctl(a, "host", "rm", "x", "-y", code=1)
    code, url = offer(b)
    assert 'a host "b" is paired already' in ctl(a, "host", "add", "b", url, typed=code, code=1)
    assert "`name`" in ctl(a, "host", "add", "b c", url, typed=code, code=1)
    assert "no code" in ctl(a, "host", "add", "c", url, code=2)


def test_unpaired_client_gets_nothing(pair: tuple[Daemon, Daemon]) -> None:
    """As another tool would try: no certificate, none that is known, and a name that is."""
    a, b = pair
    port = b.wait_for("accepting paired hosts")["endpoints"][0].rpartition(":")[2]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((ADDRESS_OF_B, int(port)), timeout=TIMEOUT_SECONDS) as raw,
        context.wrap_socket(raw, server_hostname="b") as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
        connection.sendall(b"GET /v0/host HTTP/1.1\r\nHost: b\r\n\r\n")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert b"" == connection.recv(1000)
    assert certificate is not None
    assert b"osaurus" not in certificate
    assert "can run models" in ctl(a, "host", "check", "b")


def test_a_host_without_an_address_can_add_others_and_knows_them_after_a_crash(b: Daemon) -> None:
    with temporary_home() as home:
        with host(None, home) as c:
            # Nothing is created for a feature that is not used.
            assert not {"host.pem", "hosts.json"} & {path.name for path in (home / "state").iterdir()}
            assert "set `distributed.listen`" in ctl(c, "host", "code", code=1)
            code, url = offer(b)
            ctl(c, "host", "add", "b", url, "--as", "c", typed=code)
            c.stop(signal.SIGKILL)
        with host(None, home) as c:
            assert "can run models" in ctl(c, "host", "check", "b")
    ctl(b, "host", "rm", "c", "--yes")


def test_a_removed_host_is_refused(pair: tuple[Daemon, Daemon]) -> None:
    a, b = pair
    assert "no terminal to prompt for confirmation" in ctl(b, "host", "rm", "a", code=2)
    ctl(b, "host", "rm", "a", "--yes")
    assert ("host_removed", "a") == events(b)[-1]
    assert [] == hosts(b)
    assert "pair the hosts again" in ctl(a, "host", "check", "b", code=1)
    ctl(a, "host", "rm", "b", "--yes")


def test_damaged_state_is_reported_and_clients_are_served() -> None:
    with temporary_home() as home:
        (home / "state").mkdir(mode=0o700)
        (home / "state" / "hosts.json").write_text("{")
        (home / "state" / "host.pem").write_text("x")
        with host("127.0.0.1:0", home) as daemon:
            status, reply = daemon.admin("GET", "/v0/status")
            assert (200, True) == (status, reply["serving"])
            assert any("hosts.json was unusable and has been moved" in fault for fault in reply["faults"])
            assert any("the identity of this host" in fault for fault in reply["faults"])
            assert "the identity of this host" in ctl(daemon, "host", "code", code=1)
            assert "failure  hosts: the identity of this host" in ctl(daemon, "doctor", code=1)
