"""TLS from the configuration's files to a client's answer."""

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
from tests.integration.access import PATIENCE_SECONDS, create, ctl, serve


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, home: Path) -> None:
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(home / "server.key")
    (home / "server.key").chmod(0o600)
    (home / "server.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))


@pytest.fixture
def tls_home(authority: trustme.CA, home: Path) -> Path:
    """A home whose daemon speaks TLS."""
    issue(authority, home)
    settings = f'[server]\ntls_certificate = "{home}/server.pem"\ntls_key = "{home}/server.key"\n'
    (home / "config.toml").write_text(settings)
    return home


def serial(url: str, trust: ssl.SSLContext) -> object:
    """The serial number of the certificate that is shown there."""
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port), PATIENCE_SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname=address.hostname) as wrapped,
    ):
        return (wrapped.getpeercert() or {})["serialNumber"]


def test_clients_are_served_over_tls_and_over_nothing_else(authority: trustme.CA, tls_home: Path) -> None:
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with daemons.running(tls_home) as daemon:
        url = daemon.url
        assert url.startswith("https://127.0.0.1:")
        with OpenAI(
            base_url=url, api_key="not-needed", max_retries=0, http_client=openai.DefaultHttpxClient(verify=trust)
        ) as client:
            assert [] == client.models.list().data
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url.replace("https", "http") + "/health", timeout=PATIENCE_SECONDS)

        before = serial(url, trust)
        issue(authority, tls_home)
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
        assert before != serial(url, trust)
        renewed = serial(url, trust)
        (tls_home / "server.key").write_text("half a file")
        status, answer = daemon.admin("POST", "/v0/reload", {})
        assert (500, "server.tls_key") == (status, answer["error"]["param"])
        assert renewed == serial(url, trust)

        assert "no API key asked for, TLS" in ctl(tls_home, "status").stdout
        assert f"{url} answers" in ctl(tls_home, "doctor").stdout
        create(daemon)
    assert [] == [line for line in daemon.log if line["event"] == "plain text" or line["level"] in ("warning", "error")]


def test_a_key_that_others_can_read_is_told(tls_home: Path) -> None:
    (tls_home / "server.key").chmod(0o644)
    with daemons.running(tls_home) as daemon:
        assert "other users can read the private key" in daemon.admin("GET", "/v0/status")[1]["faults"][0]


def test_files_that_cannot_be_used_are_a_reason_not_to_start(tls_home: Path) -> None:
    (tls_home / "server.key").unlink()
    run = serve(tls_home)
    assert 1 == run.returncode
    assert "`server.tls_key`" in run.stderr
    assert "Traceback" not in run.stderr
