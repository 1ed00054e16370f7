"""Demonstrations that take minutes: many requests, many loads, and where the time of a load goes."""

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
    ask,
    ask_all,
    asked,
    configure,
    events,
    make_models,
    tree_bytes,
    workers,
)

pytestmark = pytest.mark.long

CYCLES = 50
LEAK_BYTES = 10_000_000


@pytest.fixture
def models_home(home: Path, smollm_folder: Path) -> Path:
    """A home with three tiny models."""
    return make_models(home, smollm_folder, "one", "two", "three")


def test_three_models_of_which_two_fit_answer_200_mixed_requests(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_TWO, min_residency_seconds=1)
    order = [("one", "two", "three")[(n * 7 + n // 5) % 3] for n in range(200)]
    with daemons.running(models_home) as daemon:
        statuses = ask_all(daemon, order)
        evicted = events(daemon, "unloaded")
        loaded = events(daemon, "loaded")

    assert [200] * 200 == statuses
    assert {"room"} == {event["cause"] for event in evicted}
    assert [] == [line for line in daemon.log if line["event"] == "worker lost"]
    # In turns, and not one load for each request.
    print(f"{len(loaded)} loads for 200 requests")
    assert len(loaded) < 60


def test_two_that_fit_one_at_a_time_answer_alternating_requests(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=1)
    with daemons.running(models_home) as daemon:
        statuses = ask_all(daemon, ["one", "two"] * 50)
        loaded = events(daemon, "loaded")

    assert [200] * 100 == statuses
    print(f"{len(loaded)} loads for 100 alternating requests, 8 at once")
    assert len(loaded) < 40


def test_loads_and_unloads_give_everything_back(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        own = psutil.Process(daemon.process.pid)
        _cycle(daemon)
        before, open_before = tree_bytes(daemon), descriptors.by_kind(own.pid)
        seen = []
        for _ in range(CYCLES):
            _cycle(daemon)
            assert [] == own.children(recursive=True)
            seen.append(tree_bytes(daemon) - before)

        print(f"RSS after {CYCLES} cycles: {seen[-1] / 1e6:+.1f} MB, at most {max(seen) / 1e6:+.1f} MB")
        assert abs(seen[-1]) < LEAK_BYTES
        assert Counter() == descriptors.leaked(own.pid, open_before)


def _cycle(daemon: Daemon) -> None:
    assert 200 == daemon.admin("POST", "/v0/load", {"model": "one"})[0]
    assert 200 == ask(daemon, "one")
    assert 200 == daemon.admin("POST", "/v0/unload", {"model": "one"})[0]


def test_a_daemon_that_is_killed_under_load_starts_again_with_its_pins(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        for model in ("one", "two"):
            assert 200 == daemon.admin("POST", "/v0/pins", {"model": model})[0]
        daemon.wait_for("loaded", count=2)
        asking = [threading.Thread(target=_ask_until_it_dies, args=(daemon, model)) for model in ("one", "two", "one")]
        for thread in asking:
            thread.start()
        children = psutil.Process(daemon.process.pid).children(recursive=True)
        daemon.process.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(children, 30)
        assert [] == left
        for thread in asking:
            thread.join()

    with daemons.running(models_home) as daemon:
        daemon.wait_for("loaded", count=2)
        assert [True, True] == [workers(daemon)[model]["pinned"] for model in ("one", "two")]
        assert [200, 200] == [ask(daemon, model) for model in ("one", "two")]


def _ask_until_it_dies(daemon: Daemon, model: str) -> None:
    try:
        with asked(daemon, model, max_tokens=1900, stream=True) as stream:
            while stream.readline():
                pass
    except (OSError, ValueError):
        return


def test_a_crash_under_load_costs_one_model_its_requests_and_the_other_nothing(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert [200, 200] == [ask(daemon, model) for model in ("one", "two")]
        for _ in range(5):
            with asked(daemon, "one", max_tokens=1500, stream=True) as one:
                one.readline()
                victim = workers(daemon)["two"]["pid"]
                with asked(daemon, "two", max_tokens=1500, stream=True) as two:
                    two.readline()
                    os.kill(victim, signal.SIGKILL)
                    assert "worker_crashed" in two.read().decode()
                assert "[DONE]" in one.read().decode()
            assert 200 == daemon.admin("POST", "/v0/load", {"model": "two"})[0]


def test_where_the_time_of_a_load_goes_with_and_without_a_spare_worker(models_home: Path) -> None:
    configure(models_home, spare_seconds=600)
    with daemons.running(models_home) as daemon:
        plain = _load(daemon)
        spared = []
        for count in range(1, 6):
            daemon.wait_for("spare worker is ready", count=count)
            spared.append(_load(daemon))

    without = plain["spawn_seconds"] + plain["import_seconds"] + plain["weights_seconds"]
    with_spare = statistics.median(phases["weights_seconds"] for phases in spared)
    shown = ", ".join(f"{name} {plain[name]:.2f}" for name in ("spawn_seconds", "import_seconds", "weights_seconds"))
    print(f"without: {shown} = {without:.2f} s; with a spare worker: {with_spare:.2f} s (median of 5)")
    assert all(phases["spare"] for phases in spared)
    assert with_spare < without


def _load(daemon: Daemon) -> dict[str, float]:
    status, _ = daemon.admin("POST", "/v0/load", {"model": "one"})
    assert 200 == status
    assert 200 == ask(daemon, "one")
    phases: dict[str, float] = workers(daemon)["one"]["load_phases"]
    assert 200 == daemon.admin("POST", "/v0/unload", {"model": "one"})[0]
    return phases
