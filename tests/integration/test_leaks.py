"""Disconnecting clients and crashing workers leak no tasks, descriptors or memory reservations."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, descriptors
from tests.daemons import Daemon, wait_until
from tests.integration.residency import ENDLESS, chat, open_chat, workers
from tests.models import NO_END_TOKEN, make_tiny

CONTEXT_LENGTH = 16384
# So many tokens that the worker is killed before it has generated them, also on a busy machine.
MAX_TOKENS = 16_000


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    options = {"eos_token_id": NO_END_TOKEN, "max_position_embeddings": CONTEXT_LENGTH}
    make_tiny(module_home / "models" / "one", tiny_tokenizer, **options)
    with daemons.running(module_home) as daemon:
        yield daemon


@pytest.fixture(scope="module", autouse=True)
def idle_bytes(daemon: Daemon) -> int:
    """What the worker reserves without a request. Measured before the first one, with which the tests start."""
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "one"})[0]
    nbytes = reserved_bytes(daemon)
    assert 200 == chat(daemon, "one")
    return nbytes


def running_tasks(daemon: Daemon) -> Counter[str]:
    return Counter(daemon.admin("GET", "/v0/diagnosis")[1]["tasks"])


def reserved_bytes(daemon: Daemon) -> int:
    return int(workers(daemon)["one"]["reserved_bytes"])


def test_disconnecting_clients_leak_nothing(daemon: Daemon, idle_bytes: int) -> None:
    pid = daemon.process.pid
    daemon.admin("POST", "/v0/load", {"model": "one"})
    wait_until(lambda: workers(daemon)["one"]["in_flight"] == 0)
    descriptors_before, tasks_before = descriptors.by_kind(pid), running_tasks(daemon)

    for n in (1, 3, 8):
        with open_chat(daemon, "one", n=n, **ENDLESS) as stream:
            assert stream.readline().startswith(b"data: {")

    wait_until(lambda: reserved_bytes(daemon) == idle_bytes)
    wait_until(lambda: not running_tasks(daemon) - tasks_before)
    assert 0 == workers(daemon)["one"]["in_flight"]
    assert Counter() == descriptors.leaked(pid, descriptors_before)


def test_a_killed_worker_leaks_nothing(daemon: Daemon) -> None:
    pid = daemon.process.pid
    daemon.admin("POST", "/v0/unload", {"model": "one"})
    tasks_before = running_tasks(daemon)
    descriptors_before = descriptors.by_kind(pid)

    for _ in range(2):
        daemon.admin("POST", "/v0/load", {"model": "one"})
        with open_chat(daemon, "one", **{**ENDLESS, "max_tokens": MAX_TOKENS}) as stream:
            assert stream.readline().startswith(b"data: {")
            os.kill(workers(daemon)["one"]["pid"], signal.SIGKILL)
            assert b"worker_crashed" in stream.read()

    wait_until(lambda: not running_tasks(daemon) - tasks_before)
    assert Counter() == descriptors.leaked(pid, descriptors_before)
