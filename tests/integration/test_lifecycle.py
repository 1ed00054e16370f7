"""Start, load, disconnect, crash, unload and shut down, with real processes."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests import daemons, descriptors
from tests.daemons import Daemon, suspended, wait_until
from tests.integration.residency import ENDLESS, events
from tests.models import NO_END_TOKEN, make_tiny

CONTEXT_LENGTH = 32768
# Many tokens, so that the stream still runs when a test ends it, also on a busy machine.
STREAM = {**ENDLESS, "max_tokens": 30_000}
LONG = {"model": "tiny", "messages": [{"role": "user", "content": "Continue."}], "temperature": 1, **STREAM}
SHORT = {**LONG, "max_tokens": 2, "stream": False}
TIMEOUT_SECONDS = 60


def make_model(home: Path, tokenizer: Path) -> Path:
    """Create a tiny random model; its sampling is greedy by default."""
    options = {"eos_token_id": NO_END_TOKEN, "max_position_embeddings": CONTEXT_LENGTH}
    folder = make_tiny(home / "models" / "tiny", tokenizer, **options)
    (folder / "generation_config.json").write_text('{"temperature": 0.0}')
    return home


@pytest.fixture
def tiny_home(home: Path, tiny_tokenizer: Path) -> Path:
    """A home with this model."""
    return make_model(home, tiny_tokenizer)


@pytest.fixture(scope="module")
def shared_daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    make_model(module_home, tiny_tokenizer)
    shutil.copytree(module_home / "models" / "tiny", module_home / "models" / "other")
    with daemons.running(module_home) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with this model, which may be loaded but not busy."""
    wait_until(lambda: all(worker["in_flight"] == 0 for worker in shared_daemon.admin("GET", "/v0/workers")[1]))
    # After a crash, only an explicit load does not wait for the backoff.
    if any(worker["state"] == "failed" for worker in shared_daemon.admin("GET", "/v0/workers")[1]):
        assert 200 == shared_daemon.admin("POST", "/v0/load", {"model": "tiny"})[0]
    yield shared_daemon
    if (config := shared_daemon.home / "config.toml").exists():
        config.unlink()
        assert 200 == shared_daemon.admin("POST", "/v0/reload", {})[0]


Post = Callable[[Daemon, object], HTTPConnection]


@pytest.fixture
def post() -> Iterator[Post]:
    """Send chat requests, each over its own connection that stays open until the test ends or closes it."""
    with contextlib.ExitStack() as stack:

        def send(daemon: Daemon, body: object) -> HTTPConnection:
            address = urlsplit(daemon.url)
            connection = HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
            stack.callback(connection.close)
            connection.request("POST", "/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            return connection

        yield send


def workers(daemon: Daemon) -> list[psutil.Process]:
    return psutil.Process(daemon.process.pid).children()


def is_idle(process: psutil.Process) -> bool:
    return process.cpu_percent(interval=0.2) < 5


def chat_status(daemon: Daemon, post: Post, **fields: object) -> int:
    """Run a short chat and return the status."""
    answer = post(daemon, {**SHORT, **fields}).getresponse()
    answer.read()
    return answer.status


def test_the_default_model_serves_requests_without_a_model(daemon: Daemon, post: Post) -> None:
    daemon.admin("POST", "/v0/unload", {"force": True})
    assert 400 == chat_status(daemon, post, model=None)
    (daemon.home / "config.toml").write_text('default_model = "tiny"\n')
    assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
    answer = post(daemon, {**SHORT, "model": None}).getresponse()

    assert 200 == answer.status
    assert "tiny" == json.loads(answer.read())["model"]


def test_concurrent_first_requests_share_one_load(daemon: Daemon, post: Post) -> None:
    daemon.admin("POST", "/v0/unload", {"force": True})
    loads = len(events(daemon, "loaded"))
    with ThreadPoolExecutor(4) as executor:
        statuses = list(executor.map(lambda _: chat_status(daemon, post), range(4)))

    assert [200] * 4 == statuses
    assert 1 == len(workers(daemon))
    assert loads + 1 == len(events(daemon, "loaded"))


@pytest.mark.parametrize("stream", [True, False])
def test_disconnecting_cancels_the_generation(daemon: Daemon, post: Post, stream: bool) -> None:
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "tiny"})[0]
    # Without cancellation this generates for minutes.
    connection = post(daemon, {**LONG, "stream": stream})
    if stream:
        assert 200 == connection.getresponse().status
    else:
        wait_until(lambda: daemon.admin("GET", "/v0/workers")[1][0]["in_flight"] == 1)
    disconnects = daemon.count("request", status="disconnected")
    connection.close()

    daemon.wait_for("request", count=disconnects + 1, status="disconnected")
    wait_until(lambda: daemon.admin("GET", "/v0/workers")[1][0]["in_flight"] == 0)
    wait_until(lambda: is_idle(workers(daemon)[0]))


def test_a_worker_crash_fails_the_stream_and_the_next_request_starts_a_new_worker(daemon: Daemon, post: Post) -> None:
    stream = post(daemon, LONG).getresponse()
    stream.readline()
    (worker,) = workers(daemon)
    worker.send_signal(signal.SIGKILL)
    rest = stream.read().decode()

    assert "worker_crashed" in rest
    assert "SIGKILL" in rest
    assert "[DONE]" not in rest
    assert 200 == chat_status(daemon, post)
    assert worker.pid != workers(daemon)[0].pid


def test_a_worker_crash_before_the_first_token_is_a_502(daemon: Daemon, post: Post) -> None:
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "tiny"})[0]
    (worker,) = workers(daemon)
    with suspended(worker.pid):
        connection = post(daemon, LONG)
        wait_until(lambda: daemon.admin("GET", "/v0/workers")[1][0]["in_flight"] == 1)
        worker.kill()
    answer = connection.getresponse()

    assert 502 == answer.status
    assert "worker_crashed" == json.loads(answer.read())["error"]["code"]


def test_a_failed_load_is_reported_with_its_reason(daemon: Daemon, post: Post) -> None:
    folder = shutil.copytree(daemon.home / "models" / "tiny", daemon.home / "models" / "broken")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 48}))
    answer = post(daemon, {**LONG, "model": "broken"}).getresponse()
    error = json.loads(answer.read())["error"]

    assert (500, "load_failed") == (answer.status, error["code"])
    assert "shape" in error["message"]
    states = {worker["model"]: worker["state"] for worker in daemon.admin("GET", "/v0/workers")[1]}
    assert "failed" == states["broken"]
    daemon.admin("POST", "/v0/models/remove", {"models": ["broken"]})


def test_the_generation_defaults_of_the_model_are_used(daemon: Daemon, post: Post) -> None:
    body = {"model": "tiny", "messages": LONG["messages"], "max_tokens": 12}
    answers = [json.loads(post(daemon, body).getresponse().read()) for _ in "123"]

    assert all("choices" in answer for answer in answers), answers
    assert 1 == len({answer["choices"][0]["message"]["content"] for answer in answers})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_only_workers_load_mlx_and_openblas_if_it_is_installed(daemon: Daemon) -> None:
    preloaded = daemon.wait_for("BLAS for workers")["preloaded"]
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "tiny"})[0]
    own = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    workers_own = Path(f"/proc/{workers(daemon)[0].pid}/maps").read_text()

    assert "libmlx" in workers_own
    assert (preloaded is not None) == ("openblas" in workers_own)
    assert [] == [name for name in ("libmlx", "mlx", "numpy", "tokenizers") if f"/{name}" in own]


def test_prompts_and_answers_are_logged_only_with_log_content(daemon: Daemon, post: Post) -> None:
    log = daemon.home / "logs" / "osaurusd.log"
    messages = [{"role": "user", "content": "xyzzy"}]
    chats = daemon.count("request", path="/chat/completions")
    assert 200 == chat_status(daemon, post, messages=messages)
    daemon.wait_for("request", count=chats + 1, path="/chat/completions")
    assert "xyzzy" not in log.read_text()
    (daemon.home / "config.toml").write_text("[log]\ncontent = true\n")
    assert 200 == daemon.admin("POST", "/v0/reload", {})[0]
    assert 200 == chat_status(daemon, post, messages=messages)
    daemon.wait_for("output")
    assert "xyzzy" in log.read_text()


def test_a_second_daemon_on_the_same_home_fails_naming_the_pid(daemon: Daemon) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "osaurusd", "serve", "--port", "0"],
        env=daemons.environment(daemon.home),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )

    assert 1 == second.returncode
    assert f"pid {daemon.process.pid}" in second.stderr
    assert 200 == daemon.admin("GET", "/v0/status")[0]


def test_unload_ends_the_process_and_rejects_a_busy_model(daemon: Daemon, post: Post) -> None:
    stream = post(daemon, LONG).getresponse()
    stream.readline()
    status, error = daemon.admin("POST", "/v0/unload", {"model": "tiny"})
    assert (409, "busy") == (status, error["error"]["code"])

    assert (200, {"unloaded": ["tiny"]}) == daemon.admin("POST", "/v0/unload", {"force": True})
    assert "model_unloaded" in stream.read().decode()
    assert [] == workers(daemon)
    assert (200, {"unloaded": []}) == daemon.admin("POST", "/v0/unload", {"model": "tiny"})


def test_the_grace_period_is_bounded(tiny_home: Path, post: Post) -> None:
    (tiny_home / "config.toml").write_text("[server]\nshutdown_grace_seconds = 0.2\n")
    with daemons.running(tiny_home) as daemon:
        stream = post(daemon, LONG).getresponse()
        stream.readline()
        assert 200 == stream.status
        (worker,) = workers(daemon)

        assert 0 == daemon.stop()
        assert "shutting_down" in stream.read().decode()
        assert not worker.is_running()


def test_a_port_in_use_is_an_error_with_exit_code_1(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "osaurusd", "serve", "--port", str(port)],
            env=daemons.environment(home),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    assert 1 == run.returncode
    assert f"port {port}" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


def test_an_invalid_config_is_an_error_with_exit_code_1(home: Path) -> None:
    (home / "config.toml").write_text("[server]\nprot = 1\n")
    run = subprocess.run(
        [sys.executable, "-m", "osaurusd", "serve"],
        env=daemons.environment(home),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )

    assert 1 == run.returncode
    assert "did you mean `server.port`" in run.stderr


def test_an_idle_connection_does_not_delay_the_shutdown(home: Path) -> None:
    (home / "config.toml").write_text("[server]\nshutdown_grace_seconds = 3600\n")
    with daemons.running(home) as daemon:
        address = urlsplit(daemon.url)
        with socket.create_connection((address.hostname, address.port)) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")

            assert 0 == daemon.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_while_the_daemon_exits_do_not_change_its_exit_code(home: Path, number: int) -> None:
    with daemons.running(home, module="tests.fakes.signalled_daemon") as daemon:
        assert 0 == daemon.stop(number)
    assert 0 == daemon.count("plain text")


@pytest.mark.long
def test_loads_and_unloads_leak_no_descriptors(tiny_home: Path) -> None:
    with daemons.running(tiny_home) as daemon:
        own = psutil.Process(daemon.process.pid)

        def load_and_unload() -> None:
            assert 200 == daemon.admin("POST", "/v0/load", {"model": "tiny"})[0]
            assert 200 == daemon.admin("POST", "/v0/unload", {"model": "tiny"})[0]
            assert [] == own.children()

        # The first load opens descriptors that stay open.
        load_and_unload()
        before = descriptors.by_kind(own.pid)
        for _ in range(4):
            load_and_unload()

        assert Counter() == descriptors.leaked(own.pid, before)
