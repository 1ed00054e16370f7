"""Checks that take minutes: many requests, many loads, and the duration of loads."""

import os
import signal
import statistics
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests import daemons, descriptors
from tests.daemons import Daemon
from tests.integration.residency import (
    ROOM_FOR_ONE,
    ROOM_FOR_TWO,
    chat,
    chat_all,
    configure,
    events,
    make_models,
    open_chat,
    tree_bytes,
    workers,
)

pytestmark = pytest.mark.long

CYCLES = 50
MAX_LEAK_BYTES = 10_000_000


@pytest.fixture
def models_home(home: Path, tiny_tokenizer: Path) -> Path:
    """A home with three tiny models."""
    return make_models(home, tiny_tokenizer, "one", "two", "three")


def test_mixed_requests_for_three_models_with_room_for_two_are_served(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_TWO, min_residency_seconds=1)
    models = [("one", "two", "three")[(n * 7 + n // 5) % 3] for n in range(200)]
    with daemons.running(models_home) as daemon:
        statuses = chat_all(daemon, models)
        unloaded = events(daemon, "unloaded")
        loaded = events(daemon, "loaded")

    assert [200] * 200 == statuses
    assert {"memory"} == {event["cause"] for event in unloaded}
    assert [] == [line for line in daemon.log if line["event"] == "worker lost"]
    print(f"{len(loaded)} loads for 200 requests")
    assert len(loaded) < 60


def test_alternating_requests_for_two_models_with_room_for_one_are_served(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=1)
    with daemons.running(models_home) as daemon:
        statuses = chat_all(daemon, ["one", "two"] * 50)
        loaded = events(daemon, "loaded")

    assert [200] * 100 == statuses
    print(f"{len(loaded)} loads for 100 alternating requests, 8 at once")
    assert len(loaded) < 40


def test_load_cycles_leak_no_memory_processes_or_descriptors(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        own = psutil.Process(daemon.process.pid)
        load_cycle(daemon)
        bytes_before, descriptors_before = tree_bytes(daemon), descriptors.by_kind(own.pid)
        growth = []
        for _ in range(CYCLES):
            load_cycle(daemon)
            assert [] == own.children(recursive=True)
            growth.append(tree_bytes(daemon) - bytes_before)

        print(f"RSS after {CYCLES} cycles: {growth[-1] / 1e6:+.1f} MB, at most {max(growth) / 1e6:+.1f} MB")
        assert abs(growth[-1]) < MAX_LEAK_BYTES
        assert Counter() == descriptors.leaked(own.pid, descriptors_before)


def load_cycle(daemon: Daemon) -> None:
    """Load a model, use it, unload it."""
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "one"})[0]
    assert 200 == chat(daemon, "one")
    assert 200 == daemon.admin("POST", "/v0/unload", {"model": "one"})[0]


def test_a_daemon_killed_under_load_restarts_with_its_pins(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        for model in ("one", "two"):
            assert 200 == daemon.admin("POST", "/v0/pins", {"model": model})[0]
        daemon.wait_for("loaded", count=2)
        clients = [
            threading.Thread(target=chat_until_disconnected, args=(daemon, model)) for model in ("one", "two", "one")
        ]
        for client in clients:
            client.start()
        children = psutil.Process(daemon.process.pid).children(recursive=True)
        daemon.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, 30)
        assert [] == alive
        for client in clients:
            client.join()

    with daemons.running(models_home) as daemon:
        daemon.wait_for("loaded", count=2)
        assert [True, True] == [workers(daemon)[model]["pinned"] for model in ("one", "two")]
        assert [200, 200] == [chat(daemon, model) for model in ("one", "two")]


def chat_until_disconnected(daemon: Daemon, model: str) -> None:
    try:
        with open_chat(daemon, model, max_tokens=1900, stream=True) as stream:
            while stream.readline():
                pass
    except (OSError, ValueError):
        return


def test_repeated_crashes_of_one_model_do_not_affect_the_other(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert [200, 200] == [chat(daemon, model) for model in ("one", "two")]
        for _ in range(5):
            with open_chat(daemon, "one", max_tokens=1500, stream=True) as one:
                one.readline()
                victim = workers(daemon)["two"]["pid"]
                with open_chat(daemon, "two", max_tokens=1500, stream=True) as two:
                    two.readline()
                    os.kill(victim, signal.SIGKILL)
                    assert "worker_crashed" in two.read().decode()
                assert "[DONE]" in one.read().decode()
            assert 200 == daemon.admin("POST", "/v0/load", {"model": "two"})[0]


def test_loads_are_faster_with_a_standby_worker(models_home: Path) -> None:
    configure(models_home, standby_seconds=600)
    with daemons.running(models_home) as daemon:
        first = measure_load(daemon)
        later = []
        for count in range(1, 6):
            daemon.wait_for("standby worker ready", count=count)
            later.append(measure_load(daemon))

    names = ("spawn_seconds", "import_seconds", "weights_seconds")
    without_standby = sum(first[name] for name in names)
    with_standby = statistics.median(phases["weights_seconds"] for phases in later)
    details = ", ".join(f"{name} {first[name]:.2f}" for name in names)
    print(f"without: {details} = {without_standby:.2f} s; with a standby worker: {with_standby:.2f} s (median of 5)")
    assert all(phases["standby"] for phases in later)
    assert with_standby < without_standby


def measure_load(daemon: Daemon) -> dict[str, float]:
    """Load and unload a model; return the phases of the load."""
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "one"})[0]
    assert 200 == chat(daemon, "one")
    phases: dict[str, float] = workers(daemon)["one"]["load_phases"]
    assert 200 == daemon.admin("POST", "/v0/unload", {"model": "one"})[0]
    return phases
