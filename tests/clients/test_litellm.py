"""The recipe for LiteLLM: its proxy over two daemons, of which one drains or is killed."""

import contextlib
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from openai import OpenAI, OpenAIError

from tests import daemons
from tests.clients.install import install_python_clients
from tests.conftest import TINY, temporary_home
from tests.daemons import Daemon, ctl, free_port, wait_until
from tests.models import NO_END_TOKEN, make_tiny
from tests.recipes import recipe

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

THREADS = 4
START_SECONDS = 300
"""LiteLLM imports for up to a minute on a busy machine."""

MASTER_KEY = f"sk-{secrets.token_hex(32)}"
MESSAGES = [{"role": "user", "content": "Hello"}]


@dataclass
class Fleet:
    """LiteLLM in front of two daemons with the same model."""

    client: OpenAI
    daemons: list[Daemon]

    def ask(self, tokens: int = 4) -> None:
        reply = self.client.chat.completions.create(model=TINY, messages=MESSAGES, max_tokens=tokens)
        assert tokens == reply.usage.completion_tokens

    def answered(self) -> list[int]:
        """Return how many requests each daemon has answered successfully so far."""
        return [daemon.count("request", method="POST", status=200) for daemon in self.daemons]

    def ask_many(self, count: int) -> list[int]:
        """Send requests, and return how many of them each daemon has answered."""
        before = self.answered()
        with ThreadPoolExecutor(THREADS) as pool:
            [*pool.map(lambda _: self.ask(), range(count))]
        return [after - earlier for after, earlier in zip(self.answered(), before, strict=True)]


@pytest.fixture
def fleet(tiny_tokenizer: Path) -> Iterator[Fleet]:
    programs = install_python_clients("litellm")
    with contextlib.ExitStack() as stack:
        homes = [stack.enter_context(temporary_home()) for _ in range(3)]
        options = {"max_position_embeddings": 8192, "eos_token_id": NO_END_TOKEN, "tie_word_embeddings": False}
        for home in homes[:2]:
            make_tiny(home / "models" / TINY, tiny_tokenizer, **options)
        running = [stack.enter_context(daemons.running(home)) for home in homes[:2]]
        for daemon in running:
            assert 0 == ctl(daemon.home, "load", TINY).returncode
        url = stack.enter_context(litellm(programs, homes[2], [daemon.url for daemon in running]))
        yield Fleet(stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key=MASTER_KEY, max_retries=0)), running)


@contextlib.contextmanager
def litellm(programs: Path, folder: Path, urls: list[str]) -> Iterator[str]:
    """Run LiteLLM's proxy with the configuration of the documentation."""
    replacements = {
        "http://mac-1.example:8080": urls[0],
        "http://mac-2.example:8080": urls[1],
        "llama-3.2-3b-instruct": TINY,
    }
    (folder / "litellm.yaml").write_text(recipe("LiteLLM", "yaml", replacements))
    port = free_port()
    nowhere = "http://127.0.0.1:9"
    environment = {
        "HOME": str(folder),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "OSAURUS_KEY": "not-needed",
        "LITELLM_MASTER_KEY": MASTER_KEY,
        # No network but this machine.
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "NO_PROXY": "127.0.0.1,localhost",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = ["litellm", "--config", "litellm.yaml", "--port", str(port), "--host", "127.0.0.1"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(programs / command[0]), *command[1:]], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and not is_live(port):
            assert time.monotonic() < deadline, "LiteLLM does not start"
            time.sleep(0.5)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def is_live(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5) as response:
            return response.status == 200
    except (URLError, TimeoutError, ConnectionError):
        return False


def test_drained_and_killed_replicas_fail_no_request_beyond_those_in_flight(fleet: Fleet) -> None:
    first, second = fleet.daemons
    assert min(fleet.ask_many(16)) > 0, "both replicas serve requests"

    assert 0 == ctl(first.home, "drain", "--wait").returncode
    assert [0, 16] == fleet.ask_many(16)
    assert 0 == ctl(first.home, "undrain").returncode
    # LiteLLM uses the replica again after `cooldown_time`.
    wait_until(lambda: fleet.ask_many(4)[0] > 0)

    failures = ask_while_killing(fleet, second)
    assert len(failures) <= THREADS, failures
    assert [16, 0] == fleet.ask_many(16)


def ask_while_killing(fleet: Fleet, victim: Daemon) -> list[OpenAIError]:
    """Send requests from several threads, kill a daemon meanwhile with SIGKILL, and return the failures."""
    stopped, failures = threading.Event(), []

    def ask() -> None:
        while not stopped.is_set():
            try:
                fleet.ask(tokens=40)
            except OpenAIError as error:
                failures.append(error)

    before = fleet.answered()[1]
    with ThreadPoolExecutor(THREADS) as pool:
        asking = [pool.submit(ask) for _ in range(THREADS)]
        try:
            wait_until(lambda: fleet.answered()[1] > before)
            victim.process.kill()
            victim.process.wait()
            survived = fleet.answered()[0]
            wait_until(lambda: fleet.answered()[0] > survived + 4 * THREADS)
        finally:
            stopped.set()
    for each in asking:
        each.result()
    return failures
