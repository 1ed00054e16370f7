"""Disconnecting clients and crashing workers leak no tasks, descriptors or memory reservations."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import daemons, descriptors
from tests.daemons import Daemon, wait_until
from tests.integration.residency import ENDLESS, chat, make_models, open_chat, workers


@pytest.fixture(scope="module")
def daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon whose tiny model has answered one request."""
    make_models(module_home, tiny_tokenizer, "one")
    with daemons.running(module_home) as daemon:
        assert 200 == chat(daemon, "one")
        yield daemon


def running_tasks(daemon: Daemon) -> Counter[str]:
    return Counter(daemon.admin("GET", "/v0/diagnosis")[1]["tasks"])


def reserved_bytes(daemon: Daemon) -> int:
    return int(workers(daemon)["one"]["reserved_bytes"])


def test_disconnecting_clients_leak_nothing(daemon: Daemon) -> None:
    pid = daemon.process.pid
    wait_until(lambda: workers(daemon)["one"]["in_flight"] == 0)
    idle_bytes, descriptors_before, tasks_before = (
        reserved_bytes(daemon),
        descriptors.by_kind(pid),
        running_tasks(daemon),
    )

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
        with open_chat(daemon, "one", **ENDLESS) as stream:
            assert stream.readline().startswith(b"data: {")
            os.kill(workers(daemon)["one"]["pid"], signal.SIGKILL)
            assert b"worker_crashed" in stream.read()

    wait_until(lambda: not running_tasks(daemon) - tasks_before)
    assert Counter() == descriptors.leaked(pid, descriptors_before)
