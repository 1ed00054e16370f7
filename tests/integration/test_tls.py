"""TLS with the configured files, from the daemon to real clients."""

import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import trustme
from openai import OpenAI

from tests import daemons
from tests.daemons import ctl
from tests.integration.access import TIMEOUT_SECONDS, create, serve


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issue(ca: trustme.CA, home: Path) -> None:
    issued = ca.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(home / "server.key")
    (home / "server.key").chmod(0o600)
    (home / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))


@pytest.fixture
def tls_home(ca: trustme.CA, home: Path) -> Path:
    """A home with TLS configured."""
    issue(ca, home)
    settings = f'[server]\ntls_certificate = "{home}/server.pem"\ntls_key = "{home}/server.key"\n'
    (home / "config.toml").write_text(settings)
    return home


def serial(url: str, trust: ssl.SSLContext) -> object:
    """Return the serial number of the server's certificate."""
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port), TIMEOUT_SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname=address.hostname) as wrapped,
    ):
        return (wrapped.getpeercert() or {})["serialNumber"]


def test_clients_are_served_over_tls_only(ca: trustme.CA, tls_home: Path) -> None:
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    with daemons.running(tls_home) as daemon:
        url = daemon.url
        assert url.startswith("https://127.0.0.1:")
        http = openai.DefaultHttpxClient(verify=trust)
        with OpenAI(
            base_url=url, api_key="not-needed", max_retries=0, timeout=TIMEOUT_SECONDS, http_client=http
        ) as client:
            assert [] == client.models.list().data
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url.replace("https", "http") + "/health", timeout=TIMEOUT_SECONDS)

        before = serial(url, trust)
        issue(ca, tls_home)
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
        assert before != serial(url, trust)
        renewed = serial(url, trust)
        (tls_home / "server.key").write_text("half a file")
        status, response = daemon.admin("POST", "/v0/reload", {})
        assert (500, "server.tls_key") == (status, response["error"]["param"])
        assert renewed == serial(url, trust)

        assert "no API key required, TLS" in ctl(tls_home, "status").stdout
        assert f"{url} responds" in ctl(tls_home, "doctor").stdout
        create(daemon)
    assert [] == [line for line in daemon.log if line["event"] == "plain text" or line["level"] in ("warning", "error")]


def test_status_reports_a_key_that_other_users_can_read(tls_home: Path) -> None:
    (tls_home / "server.key").chmod(0o644)
    with daemons.running(tls_home) as daemon:
        assert "other users can read the private key" in daemon.admin("GET", "/v0/status")[1]["faults"][0]


def test_daemon_does_not_start_with_an_unusable_key(tls_home: Path) -> None:
    (tls_home / "server.key").unlink()
    run = serve(tls_home)
    assert 1 == run.returncode
    assert "`server.tls_key`" in run.stderr
    assert "Traceback" not in run.stderr
