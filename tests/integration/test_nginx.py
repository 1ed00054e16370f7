"""The recipe for nginx: TLS, API keys, and two daemons of which one drains or is killed."""

import contextlib
import itertools
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import trustme
from openai import AuthenticationError, OpenAI

from osaurusd.wire import ports
from tests import daemons
from tests.conftest import TINY, temporary_home
from tests.daemons import Daemon, ctl, free_port, wait_until
from tests.integration.access import create
from tests.models import NO_END_TOKEN, make_tiny
from tests.recipes import recipe

NGINX = shutil.which("nginx", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/homebrew/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

MESSAGES = [{"role": "user", "content": "Hello"}]


@dataclass
class Fleet:
    """nginx in front of two daemons with the same model and the same keys."""

    url: str
    daemons: list[Daemon]
    key: str
    trust: ssl.SSLContext
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def client(self, key: str | None = None) -> OpenAI:
        http = openai.DefaultHttpxClient(verify=self.trust)
        # By default, a connection with its TLS handshake may take 5 s, which is little on a busy machine.
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=60, http_client=http)

    def ask(self, client: OpenAI) -> str:
        """Send a request, and return the id that it was given."""
        id_ = f"request-{next(self.numbers)}"
        reply = client.chat.completions.with_raw_response.create(
            model=TINY, messages=MESSAGES, max_tokens=4, extra_headers={"X-Request-Id": id_}
        )
        assert id_ == reply.headers["x-request-id"]
        assert 4 == reply.parse().usage.completion_tokens
        return id_

    def served_by(self, ids: list[str]) -> list[int]:
        """Return how many of the requests each daemon has answered successfully, once all are logged."""

        def count() -> list[int]:
            return [sum(daemon.count("request", request_id=id_, status=200) for id_ in ids) for daemon in self.daemons]

        wait_until(lambda: sum(count()) == len(ids))
        return count()


def ask_many(fleet: Fleet, count: int) -> list[str]:
    with fleet.client() as client, ThreadPoolExecutor(4) as pool:
        return [*pool.map(lambda _: fleet.ask(client), range(count))]


@pytest.fixture(scope="module")
def fleet(tiny_tokenizer: Path) -> Iterator[Fleet]:
    ca = trustme.CA()
    with contextlib.ExitStack() as stack:
        homes = [stack.enter_context(temporary_home()) for _ in range(3)]
        options = {"max_position_embeddings": 8192, "eos_token_id": NO_END_TOKEN, "tie_word_embeddings": False}
        for home in homes[:2]:
            make_tiny(home / "models" / TINY, tiny_tokenizer, **options)
            (home / "config.toml").write_text("[server]\nrequire_key = true\n")
        key = create_key(homes[0], homes[1])
        running = [stack.enter_context(daemons.running(home)) for home in homes[:2]]
        url = stack.enter_context(nginx(homes[2], ca, [urlsplit(daemon.url).netloc for daemon in running]))
        trust = ssl.create_default_context()
        ca.configure_trust(trust)
        yield Fleet(url, running, key, trust)


def create_key(first: Path, second: Path) -> str:
    """Create a key on the first host, and copy the file with the keys to the second one."""
    (first / "config.toml").rename(first / "later.toml")
    with daemons.running(first) as daemon:
        key = str(create(daemon)["key"])
    (first / "later.toml").rename(first / "config.toml")
    (second / "state").mkdir(mode=0o700)
    shutil.copy(first / "state" / "keys.json", second / "state")
    return key


@contextlib.contextmanager
def nginx(folder: Path, ca: trustme.CA, hosts: list[str]) -> Iterator[str]:
    """Run nginx with the configuration of the documentation."""
    issued = ca.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "server.key")
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    port = free_port()
    replacements = {
        "mac-1.example:8080": hosts[0],
        "mac-2.example:8080": hosts[1],
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server_name ai.example": "server_name localhost",
        "/etc/nginx/ai.example.pem": str(folder / "server.pem"),
        "/etc/nginx/ai.example.key": str(folder / "server.key"),
    }
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{recipe('nginx', 'nginx', replacements)}}}\n"
    )
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        wait_until(lambda: ports.accepts_connections("127.0.0.1", port) or process.poll() is not None)
        assert process.poll() is None, (folder / "error.log").read_text()
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def test_websockets_pass(fleet: Fleet) -> None:
    websockets = pytest.importorskip("websockets.sync.client")
    headers = {"Authorization": f"Bearer {fleet.key}"}
    url = fleet.url.replace("https", "wss") + "/v1/responses"
    with websockets.connect(url, ssl=fleet.trust, additional_headers=headers) as connection:
        connection.send(
            json.dumps({"type": "response.create", "model": TINY, "input": "Hello", "max_output_tokens": 4})
        )
        events = []
        while not events or events[-1]["type"] != "response.incomplete":
            events.append(json.loads(connection.recv(60)))
    assert 4 == events[-1]["response"]["usage"]["output_tokens"]


def test_drained_and_killed_hosts_fail_no_request(fleet: Fleet) -> None:
    """Kills a host: the last test of this module."""
    first, second = fleet.daemons
    health = httpx2.get(f"{fleet.url}/health/ready", verify=fleet.trust, timeout=60)
    assert (200, {"status": "ok"}) == (health.status_code, health.json())
    with fleet.client("sk-osaurus-wrong") as stranger, pytest.raises(AuthenticationError):
        stranger.models.list()
    assert min(fleet.served_by(ask_many(fleet, 8))) > 0, "both hosts serve requests"

    assert 0 == ctl(first.home, "drain", "--wait", "--json").returncode
    assert [0, 8] == fleet.served_by(ask_many(fleet, 8))
    assert 0 == ctl(first.home, "undrain").returncode
    # nginx uses the host again after `fail_timeout`.
    wait_until(lambda: fleet.served_by(ask_many(fleet, 4))[0] > 0)

    with fleet.client() as client:
        stream = client.chat.completions.create(model=TINY, messages=MESSAGES, max_tokens=40, stream=True)
        assert "length" == [chunk.choices[0].finish_reason for chunk in stream][-1]

    second.process.kill()
    second.process.wait()
    assert 8 == fleet.served_by(ask_many(fleet, 8))[0]
