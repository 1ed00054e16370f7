"""A stream whose first token takes longer than the time-outs of a proxy and of a client.

The worker is stopped meanwhile, like one that processes a long prompt, until an answer without `stream` has run into
the time-out. Most tests shorten it.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest
from openai import InternalServerError, OpenAI, OpenAIError

from tests.daemons import Daemon
from tests.integration.residency import stopped_worker
from tests.models import running_tiny

A = TypeVar("A")
S = TypeVar("S")

TIMEOUTS_SECONDS = (1, 10, 30)
"""If the machine pauses the daemon for longer than a time-out, the test is repeated with the next one."""

EXTRA_SECONDS = 2.0
"""The stream may have started later than the answer, and `fetch` rounds its time-outs up."""

CONFIG = """
[server]
first_byte_seconds = 0.2
"""
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
    "logit_bias": {"0": -100, "2": -100},
}

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {settings}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""

# Node has no other way to set the time-outs of its `fetch`, which are 300 s.
FETCH = """
const [url, body, timeout] = process.argv.slice(1);
await fetch('data:,');
const {constructor: Agent} = globalThis[Symbol.for('undici.globalDispatcher.1')];
const timeouts = {headersTimeout: Number(timeout), bodyTimeout: Number(timeout)};
const dispatcher = timeout ? new Agent(timeouts) : undefined;
const response = await fetch(url, {method: 'POST', headers: {'Content-Type': 'application/json'}, body, dispatcher});
process.stdout.write(await response.text());
"""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    with running_tiny(module_home, tiny_tokenizer, CONFIG, max_position_embeddings=65536) as daemon:
        yield daemon


@contextlib.contextmanager
def running_nginx(folder: Path, upstream: str, settings: str = "") -> Iterator[str]:
    """Run nginx in front of the daemon, with its default settings except for these, and yield its URL."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, settings=settings, port=port, upstream=upstream))
    with subprocess.Popen([program, "-c", str(config), "-p", str(folder), "-e", "stderr"]) as process:
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    pytest.fail("nginx did not start")


def run_both(daemon: Daemon, answer: Callable[[], A], stream: Callable[[], S]) -> tuple[A, S]:
    """Call both. The worker is stopped until the answer has run into the time-out."""
    with ThreadPoolExecutor() as threads:
        with stopped_worker(daemon, "tiny"):
            streamed, answered = threads.submit(stream), threads.submit(answer)
            failure = answered.result()
            time.sleep(EXTRA_SECONDS)
        return failure, streamed.result()


def test_stream_outlasts_the_time_out_of_nginx(daemon: Daemon, tmp_path: Path) -> None:
    def outlasts(seconds: int) -> bool:
        with (
            running_nginx(tmp_path, daemon.url, f"proxy_read_timeout {seconds}s;") as url,
            OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        ):
            status, finish_reason = run_both(daemon, lambda: failing_status(client), lambda: stream_chat(client))
            assert 504 == status
            return finish_reason == "length"

    assert any(outlasts(seconds) for seconds in TIMEOUTS_SECONDS)


def failing_status(client: OpenAI) -> int:
    """Send a chat that fails, and return the status."""
    with pytest.raises(InternalServerError) as caught:
        client.chat.completions.create(**CHAT)
    return caught.value.status_code


def stream_chat(client: OpenAI) -> str | None:
    """Stream a chat, and return its finish reason; None if the stream is cut."""
    with contextlib.suppress(OpenAIError, httpx2.TransportError):
        chunks = list(client.chat.completions.create(**CHAT, stream=True))
        return str(chunks[-1].choices[0].finish_reason)
    return None


def test_events_pass_through_nginx_one_by_one(daemon: Daemon, tmp_path: Path) -> None:
    with (
        running_nginx(tmp_path, daemon.url) as url,
        OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        chunks = client.chat.completions.create(**{**CHAT, "max_tokens": 60_000}, stream=True)
        first = next(iter(chunks))
        assert "assistant" == first.choices[0].delta.role
        (worker,) = daemon.admin("GET", "/v0/workers")[1]
        assert 1 == worker["in_flight"]
        chunks.close()


def fetch(url: str, body: dict[str, object], timeout_seconds: int | None = None) -> subprocess.CompletedProcess[str]:
    """Send a chat with Node's `fetch`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    timeout = [str(timeout_seconds * 1000)] if timeout_seconds else []
    command = [node, "--input-type=module", "--eval", FETCH, f"{url}/v1/chat/completions", json.dumps(body), *timeout]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_stream_outlasts_the_time_out_of_fetch(daemon: Daemon) -> None:
    def outlasts(seconds: int) -> bool:
        answer, stream = run_both(
            daemon,
            lambda: fetch(daemon.url, CHAT, seconds),
            lambda: fetch(daemon.url, {**CHAT, "stream": True}, seconds),
        )
        assert "HeadersTimeoutError" in answer.stderr
        return stream.stdout.startswith(": keep-alive\n\n") and stream.stdout.endswith("data: [DONE]\n\n")

    assert any(outlasts(seconds) for seconds in TIMEOUTS_SECONDS)


@pytest.mark.long
def test_stream_outlasts_the_default_time_out_of_nginx_with_default_settings(
    home: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    with running_tiny(home, tiny_tokenizer, "") as daemon, running_nginx(tmp_path, daemon.url) as url:
        answer, stream = run_both(daemon, lambda: fetch(url, CHAT), lambda: fetch(url, {**CHAT, "stream": True}))

    assert "504 Gateway Time-out" in answer.stdout
    assert stream.stdout.endswith("data: [DONE]\n\n"), stream
    # One every 10 s, of which a busy machine may delay some. The time-outs of `fetch` are longer than nginx's 60 s.
    assert stream.stdout.count(": keep-alive") >= 4
