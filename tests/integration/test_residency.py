"""Several models in one daemon with real workers: memory, crashes, hangs, pins, events and metrics."""

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests import daemons
from tests.daemons import Daemon, suspended, wait_until
from tests.integration.residency import (
    ENDLESS,
    ROOM_FOR_ONE,
    ROOM_FOR_TWO,
    chat,
    configure,
    events,
    get,
    make_models,
    open_chat,
    read_chunks,
    workers,
)

HANG_SECONDS = 10


@pytest.fixture(scope="module")
def shared_daemon(module_home: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    """A daemon with tiny models. Only one test loads the fourth: once loaded, needs are measured, not estimated."""
    make_models(module_home, tiny_tokenizer, "one", "two", "three", "four")
    with daemons.running(module_home) as daemon:
        yield daemon


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """This daemon, with the default configuration; models of previous tests may be loaded and idle."""
    yield shared_daemon
    reconfigure(shared_daemon)


@pytest.fixture
def fresh_daemon(daemon: Daemon) -> Daemon:
    """This daemon without loaded models."""
    assert 200 == daemon.admin("POST", "/v0/unload", {"force": True})[0]
    return daemon


def reconfigure(daemon: Daemon, **keys: object) -> None:
    """Change these keys of `[residency]`, and reset the others."""
    configure(daemon.home, **keys)
    assert 200 == daemon.admin("POST", "/v0/reload", {})[0]


def faults(daemon: Daemon) -> list[str]:
    result: list[str] = daemon.admin("GET", "/v0/status")[1]["faults"]
    return result


def code(response: tuple[int, dict[str, dict[str, str]]]) -> tuple[int, str]:
    """Return status and error code."""
    return response[0], response[1]["error"]["code"]


def pinned(response: tuple[int, dict[str, list[str]]]) -> tuple[int, list[str]]:
    """Return status and pinned models."""
    return response[0], response[1]["pinned"]


# Memory


def test_idle_models_are_evicted_before_a_request_is_rejected(fresh_daemon: Daemon) -> None:
    daemon, before = fresh_daemon, len(events(fresh_daemon, "unloaded"))
    reconfigure(daemon, budget_bytes=ROOM_FOR_TWO, min_residency_seconds=0.2)

    assert [200] * 4 == [chat(daemon, model) for model in ("one", "two", "one", "three")]
    unloaded = events(daemon, "unloaded")[before:]

    assert [("two", "memory")] == [(event["model"], event["cause"]) for event in unloaded]
    assert daemon.admin("GET", "/v0/status")[1]["memory_used_bytes"] <= ROOM_FOR_TWO


@pytest.mark.long
def test_two_models_that_do_not_fit_together_are_both_served_unless_one_stays_busy(daemon: Daemon) -> None:
    before = len(events(daemon, "loaded"))
    reconfigure(daemon, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=0.2)
    assert 200 == chat(daemon, "one")
    with ThreadPoolExecutor(8) as executor:
        with suspended(workers(daemon)["one"]["pid"]):
            chats = [executor.submit(chat, daemon, model) for model in ["one", "two"] * 4]
            wait_until(lambda: sum(each["in_flight"] + each["waiting"] for each in workers(daemon).values()) == 8)
        assert [200] * 8 == [each.result() for each in chats]
    assert len(events(daemon, "loaded")) - before <= 3
    assert 200 == chat(daemon, "one")
    reconfigure(daemon, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=0.2, wait_seconds=0.2)

    with ThreadPoolExecutor(1) as executor:
        with suspended(workers(daemon)["one"]["pid"]):
            busy = executor.submit(chat, daemon, "one")
            wait_until(lambda: workers(daemon)["one"]["in_flight"] == 1)
            with open_chat(daemon, "two", max_tokens=2) as response:
                error = json.loads(response.read())["error"]
        assert 200 == busy.result()

    assert (503, "insufficient_memory") == (response.status, error["code"])
    assert "`one` holds" in error["message"]
    assert "in flight" in error["message"]


def test_a_model_larger_than_the_budget_is_rejected_without_a_process(fresh_daemon: Daemon) -> None:
    reconfigure(fresh_daemon, budget_bytes=5_000_000)
    response = fresh_daemon.admin("POST", "/v0/load", {"model": "one"})

    assert (503, "insufficient_memory") == code(response)
    assert "can never fit" in response[1]["error"]["message"]
    assert [] == psutil.Process(fresh_daemon.process.pid).children()


def test_pins_over_the_budget_are_rejected_with_the_sum(daemon: Daemon) -> None:
    reconfigure(daemon, budget_bytes=ROOM_FOR_ONE)
    loads = daemon.count("loaded")
    assert 200 == daemon.admin("POST", "/v0/pins", {"model": "one"})[0]
    daemon.wait_for("loaded", count=loads + 1)
    response = daemon.admin("POST", "/v0/pins", {"model": "two"})

    assert (503, "insufficient_memory") == code(response)
    assert "`one` " in response[1]["error"]["message"]
    assert " + `two` " in response[1]["error"]["message"]
    assert (503, "insufficient_memory") == code(daemon.admin("POST", "/v0/load", {"model": "two"}))
    assert (200, []) == pinned(daemon.admin("POST", "/v0/pins", {"model": "one", "pinned": False}))


def test_a_smaller_budget_applies_at_once(daemon: Daemon) -> None:
    for model in ("one", "two"):
        assert 200 == daemon.admin("POST", "/v0/load", {"model": model})[0]
    assert 200 == chat(daemon, "two")
    reconfigure(daemon, budget_bytes=ROOM_FOR_ONE)

    wait_until(lambda: list(workers(daemon)) == ["two"])
    assert ROOM_FOR_ONE == workers(daemon)["two"]["limit_bytes"]
    assert 200 == chat(daemon, "two")


# Crashes and hangs


def test_a_crash_fails_the_requests_of_one_model_only(daemon: Daemon) -> None:
    with open_chat(daemon, "one", **ENDLESS) as one, open_chat(daemon, "two", **ENDLESS) as two:
        read_chunks(one, 2)
        read_chunks(two, 2)
        os.kill(workers(daemon)["one"]["pid"], signal.SIGKILL)
        rest = one.read().decode()
        read_chunks(two, 50)

    assert "worker_crashed" in rest
    assert "[DONE]" not in rest
    crashed = workers(daemon)["one"]
    assert "failed" == crashed["state"]
    assert "SIGKILL" in crashed["last_exit"]
    assert any("one failed" in fault for fault in faults(daemon))
    assert 200 == chat(daemon, "one")
    assert "ready" == workers(daemon)["one"]["state"]


def test_a_worker_without_progress_is_killed(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    reconfigure(daemon, hang_seconds=HANG_SECONDS)
    with open_chat(daemon, "one", **ENDLESS) as stream:
        read_chunks(stream, 2)
        os.kill(workers(daemon)["one"]["pid"], signal.SIGSTOP)
        rest = stream.read().decode()

    assert f"made no progress for {HANG_SECONDS} s" in rest
    assert [] == psutil.Process(daemon.process.pid).children()


# Observation


def test_metrics_count_requests_tokens_and_loads_in_prometheus_format(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon

    def samples() -> list[Sample]:
        status, text = get(daemon, "/metrics")
        assert 200 == status
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(samples: list[Sample], name: str, **labels: Any) -> float:
        return next((s.value for s in samples if s.name == name and labels.items() <= s.labels.items()), 0)

    before = samples()
    assert [200, 200, 404] == [chat(daemon, "three"), chat(daemon, "three", 8), chat(daemon, "none")]
    after = samples()

    def increase(name: str, **labels: Any) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert 2 == increase("osaurus_http_requests_total", endpoint="/chat/completions", status="200")
    assert 1 == increase("osaurus_http_requests_total", endpoint="/chat/completions", status="404")
    assert 12 == increase("osaurus_completion_tokens_total", model="three")
    assert increase("osaurus_prompt_tokens_total", model="three") > 0
    assert 2 == increase("osaurus_time_to_first_token_seconds_count", model="three")
    assert 10 == increase("osaurus_inter_token_seconds_count", model="three")
    assert 10 == increase("osaurus_inter_token_seconds_bucket", model="three", le="+Inf")
    assert 1 == increase("osaurus_loads_total", model="three", result="loaded")
    assert [0] == [s.value for s in after if s.name == "osaurus_requests_waiting" and s.labels["model"] == "three"]
    assert value(after, "osaurus_model_memory_bytes", model="three") > 0
    assert value(after, "osaurus_memory_budget_bytes") > value(after, "osaurus_memory_used_bytes") > 0
    assert not any(sample.name.endswith("_created") for sample in after)


@pytest.mark.long
def test_load_phases_show_what_a_standby_worker_saves(fresh_daemon: Daemon) -> None:
    daemon, standbys = fresh_daemon, fresh_daemon.count("standby worker ready")
    reconfigure(daemon, standby_seconds=600)
    first = daemon.admin("POST", "/v0/load", {"model": "one"})[1]["load_phases"]
    daemon.wait_for("standby worker ready", count=standbys + 1)
    second = daemon.admin("POST", "/v0/load", {"model": "two"})[1]["load_phases"]
    assert 200 == chat(daemon, "two")

    assert first["import_seconds"] > 0
    assert first["spawn_seconds"] > 0
    assert (True, 0, 0) == (second["standby"], second["spawn_seconds"], second["import_seconds"])
    assert second["weights_seconds"] > 0
    assert workers(daemon)["two"]["load_phases"]["first_token_seconds"] > 0


def test_all_commands_report_the_same_memory_of_a_model(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    before = len(events(daemon, "loading", "loaded"))
    estimate = daemon.admin("POST", "/v0/models/details", {"model": "four"})[1]["needs_bytes"]
    daemon.admin("POST", "/v0/load", {"model": "four"})
    status = daemon.admin("GET", "/v0/status")[1]
    loading, loaded = events(daemon, "loading", "loaded")[before:]
    listed = {model["name"]: model for model in daemon.admin("GET", "/v0/models")[1]}

    assert estimate == loading["bytes"]
    assert {status["memory_used_bytes"]} == {
        daemon.admin("POST", "/v0/models/details", {"model": "four"})[1]["needs_bytes"],
        listed["four"]["worker"]["needs_bytes"],
        workers(daemon)["four"]["needs_bytes"],
        next(worker for worker in status["workers"] if worker["model"] == "four")["needs_bytes"],
        loaded["bytes"],
    }


@pytest.mark.long
def test_events_tell_why_an_idle_model_is_unloaded(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    reconfigure(daemon, keep_alive_by_model={"one": 0.2})
    past = len(daemon.admin("GET", "/v0/events")[1])
    with daemon.following("GET", "/v0/events?follow=1") as following:
        assert 200 == chat(daemon, "one")
        kinds = [event["kind"] for event in itertools.islice(following, past, past + 4)]

    assert ["loading", "loaded", "unloading", "unloaded"] == kinds
    assert "idle" == events(daemon, "unloaded")[-1]["cause"]
    assert [] == psutil.Process(daemon.process.pid).children()


# Restarts


def test_pins_survive_a_kill_of_the_daemon_and_its_workers_exit(home: Path, tiny_tokenizer: Path) -> None:
    make_models(home, tiny_tokenizer, "one", "two")
    with daemons.running(home) as daemon:
        assert (200, ["two"]) == pinned(daemon.admin("POST", "/v0/pins", {"model": "two"}))
        daemon.wait_for("loaded")
        with open_chat(daemon, "two", **ENDLESS) as stream:
            read_chunks(stream, 2)
            (worker,) = psutil.Process(daemon.process.pid).children()
            daemon.process.kill()
            psutil.wait_procs([worker], 60)
            assert not worker.is_running()

    with daemons.running(home) as daemon:
        assert "two" == daemon.wait_for("loaded")["model"]
        info = workers(daemon)["two"]
        assert (True, None) == (info["pinned"], info["idle_left_seconds"])
        assert (409, "busy") == code(daemon.admin("POST", "/v0/unload", {"model": "two"}))
        assert (200, {"unloaded": []}) == daemon.admin("POST", "/v0/unload", {})
        assert (200, {"unloaded": ["two"]}) == daemon.admin("POST", "/v0/unload", {"model": "two", "force": True})
        assert (200, ["two"]) == pinned(daemon.admin("GET", "/v0/pins"))
        assert (200, []) == pinned(daemon.admin("POST", "/v0/pins", {"model": "two", "pinned": False}))


def test_a_damaged_state_file_is_moved_aside_and_reported(home: Path) -> None:
    state = home / "state"
    state.mkdir(mode=0o700)
    (state / "residency.json").write_text('{"version": 1, "pins": ["tw')
    with daemons.running(home) as daemon:
        assert any("residency.json" in fault for fault in faults(daemon))

    assert (state / "residency.damaged.json").exists()


def test_a_pinned_model_that_is_not_on_disk_is_reported_until_unpinned(home: Path) -> None:
    (home / "state").mkdir(mode=0o700)
    (home / "state" / "residency.json").write_text('{"version": 1, "pins": ["org/removed"]}')
    with daemons.running(home) as daemon:
        assert any("org/removed" in fault for fault in faults(daemon))

        assert (200, []) == pinned(daemon.admin("POST", "/v0/pins", {"model": "org/removed", "pinned": False}))

        assert [] == faults(daemon)


def test_a_subscriber_that_does_not_read_events_delays_no_request(home: Path, tiny_tokenizer: Path) -> None:
    make_models(home, tiny_tokenizer, "one")
    configure(home, keep_alive_seconds=0)
    with daemons.running(home) as daemon, daemon.following("GET", "/v0/events?follow=1"):
        chatting = threading.Thread(target=lambda: chat(daemon, "one"))
        chatting.start()
        chatting.join(60)

        assert not chatting.is_alive()
        assert 0 == daemon.stop()
