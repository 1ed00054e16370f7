"""Several models in one daemon with real workers: memory, crashes, hangs, pins, events and metrics."""

import functools
import json
import os
import signal
import threading
from http.client import HTTPResponse
from pathlib import Path

import psutil
import pytest

from tests import daemons
from tests.daemons import Daemon, UnixConnection, wait_until
from tests.integration.residency import (
    ENDLESS,
    ROOM_FOR_ONE,
    ROOM_FOR_TWO,
    chat,
    chat_all,
    configure,
    events,
    get,
    make_models,
    open_chat,
    read_metric,
    workers,
)


@pytest.fixture
def models_home(home: Path, smollm_folder: Path) -> Path:
    """A home with three tiny models."""
    return make_models(home, smollm_folder, "one", "two", "three")


def read_chunks(stream: HTTPResponse, count: int) -> None:
    """Read this many chunks of a streamed response."""
    for _ in range(count):
        assert stream.readline().startswith(b"data: {")
        assert stream.readline() == b"\n"


def faults(daemon: Daemon) -> list[str]:
    result: list[str] = daemon.admin("GET", "/v0/status")[1]["faults"]
    return result


def code(response: tuple[int, dict[str, dict[str, str]]]) -> tuple[int, str]:
    """Return status and error code."""
    return response[0], response[1]["error"]["code"]


def pinned(response: tuple[int, dict[str, list[str]]]) -> tuple[int, list[str]]:
    """Return status and pinned models."""
    return response[0], response[1]["pinned"]


def unix_request(daemon: Daemon, method: str, path: str) -> UnixConnection:
    connection = UnixConnection(daemon.socket)
    connection.request(method, path, headers={"Host": "osaurusd", "Osaurus-Api": "1"})
    return connection


# Memory


def test_idle_models_are_evicted_before_a_request_is_rejected(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_TWO, min_residency_seconds=0.2)
    with daemons.running(models_home) as daemon:
        models = ["one", "two", "one", "three", "one", "two", "three"]

        assert [200] * 7 == [chat(daemon, model) for model in models]
        unloaded = events(daemon, "unloaded")

        assert ["two", "three", "one"] == [event["model"] for event in unloaded]
        assert {"memory"} == {event["cause"] for event in unloaded}
        assert daemon.admin("GET", "/v0/status")[1]["memory_used_bytes"] <= ROOM_FOR_TWO


def test_two_models_that_do_not_fit_together_are_both_served_unless_one_stays_busy(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=0.2, wait_seconds=1)
    with daemons.running(models_home) as daemon:
        assert [200] * 8 == chat_all(daemon, ["one", "two"] * 4)
        assert len(events(daemon, "loaded")) <= 5

        with open_chat(daemon, "one", **ENDLESS) as stream:
            read_chunks(stream, 1)
            os.kill(workers(daemon)["one"]["pid"], signal.SIGSTOP)
            with open_chat(daemon, "two", max_tokens=2) as response:
                error = json.loads(response.read())["error"]
            os.kill(workers(daemon)["one"]["pid"], signal.SIGCONT)
            read_chunks(stream, 3)

        assert (503, "insufficient_memory") == (response.status, error["code"])
        assert "`one` holds" in error["message"]
        assert "in flight" in error["message"]


def test_a_model_larger_than_the_budget_is_rejected_without_a_process(models_home: Path) -> None:
    configure(models_home, budget_bytes=5_000_000)
    with daemons.running(models_home) as daemon:
        response = daemon.admin("POST", "/v0/load", {"model": "one"})

        assert (503, "insufficient_memory") == code(response)
        assert "can never fit" in response[1]["error"]["message"]
        assert [] == psutil.Process(daemon.process.pid).children()


def test_a_smaller_budget_applies_at_once(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        for model in ("one", "two"):
            assert 200 == daemon.admin("POST", "/v0/load", {"model": model})[0]
        configure(models_home, budget_bytes=ROOM_FOR_ONE)
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]

        wait_until(lambda: list(workers(daemon)) == ["two"])
        assert ROOM_FOR_ONE == workers(daemon)["two"]["limit_bytes"]
        assert 200 == chat(daemon, "two")


# Crashes and hangs


def test_a_crash_fails_the_requests_of_one_model_only(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
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


def test_a_worker_without_progress_is_killed(models_home: Path) -> None:
    configure(models_home, hang_seconds=6)
    with daemons.running(models_home) as daemon:
        with open_chat(daemon, "one", **ENDLESS) as stream:
            read_chunks(stream, 2)
            os.kill(workers(daemon)["one"]["pid"], signal.SIGSTOP)
            rest = stream.read().decode()

        assert "made no progress for 6 s" in rest
        assert [] == psutil.Process(daemon.process.pid).children()
        assert 200 == chat(daemon, "one")


# Pins


def test_pins_survive_a_kill_of_the_daemon(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert (200, ["two"]) == pinned(daemon.admin("POST", "/v0/pins", {"model": "two"}))
        daemon.wait_for("loaded")
        with open_chat(daemon, "two", **ENDLESS) as stream:
            read_chunks(stream, 2)
            (worker,) = psutil.Process(daemon.process.pid).children()
            daemon.process.kill()
            psutil.wait_procs([worker], 30)
            assert not worker.is_running()

    with daemons.running(models_home) as daemon:
        assert "two" == daemon.wait_for("loaded")["model"]
        info = workers(daemon)["two"]
        assert (True, None) == (info["pinned"], info["idle_left_seconds"])
        assert (409, "busy") == code(daemon.admin("POST", "/v0/unload", {"model": "two"}))
        assert (200, {"unloaded": []}) == daemon.admin("POST", "/v0/unload", {})
        assert (200, {"unloaded": ["two"]}) == daemon.admin("POST", "/v0/unload", {"model": "two", "force": True})
        assert (200, ["two"]) == pinned(daemon.admin("GET", "/v0/pins"))
        assert (200, []) == pinned(daemon.admin("POST", "/v0/pins", {"model": "two", "pinned": False}))


def test_a_damaged_state_file_is_moved_aside_and_reported(models_home: Path) -> None:
    state = models_home / "state"
    state.mkdir(mode=0o700)
    (state / "residency.json").write_text('{"version": 1, "pins": ["tw')
    with daemons.running(models_home) as daemon:
        assert any("residency.json" in fault for fault in faults(daemon))

    assert (state / "residency.damaged.json").exists()


def test_a_pinned_model_that_is_not_on_disk_is_reported_until_unpinned(home: Path) -> None:
    (home / "state").mkdir(mode=0o700)
    (home / "state" / "residency.json").write_text('{"version": 1, "pins": ["org/removed"]}')
    with daemons.running(home) as daemon:
        assert any("org/removed" in fault for fault in faults(daemon))

        assert (200, []) == pinned(daemon.admin("POST", "/v0/pins", {"model": "org/removed", "pinned": False}))

        assert [] == faults(daemon)


def test_pins_over_the_budget_are_rejected_with_the_sum(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE)
    with daemons.running(models_home) as daemon:
        assert 200 == daemon.admin("POST", "/v0/pins", {"model": "one"})[0]
        daemon.wait_for("loaded")
        response = daemon.admin("POST", "/v0/pins", {"model": "two"})

        assert (503, "insufficient_memory") == code(response)
        assert "`one` " in response[1]["error"]["message"]
        assert " + `two` " in response[1]["error"]["message"]
        assert (503, "insufficient_memory") == code(daemon.admin("POST", "/v0/load", {"model": "two"}))


# Observation


def test_load_phases_show_what_a_standby_worker_saves(models_home: Path) -> None:
    configure(models_home, standby_seconds=60)
    with daemons.running(models_home) as daemon:
        first = daemon.admin("POST", "/v0/load", {"model": "one"})[1]["load_phases"]
        daemon.wait_for("standby worker ready")
        second = daemon.admin("POST", "/v0/load", {"model": "two"})[1]["load_phases"]
        assert 200 == chat(daemon, "two")

        assert first["import_seconds"] > 0.1
        assert first["spawn_seconds"] > 0
        assert (True, 0, 0) == (second["standby"], second["spawn_seconds"], second["import_seconds"])
        assert second["weights_seconds"] > 0
        assert workers(daemon)["two"]["load_phases"]["first_token_seconds"] > 0


def test_all_commands_report_the_same_memory_of_a_model(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        estimate = daemon.admin("POST", "/v0/models/details", {"model": "one"})[1]["needs_bytes"]
        daemon.admin("POST", "/v0/load", {"model": "one"})
        status = daemon.admin("GET", "/v0/status")[1]

        assert {estimate} == {event["bytes"] for event in events(daemon, "loading")}
        assert {status["memory_used_bytes"]} == {
            daemon.admin("POST", "/v0/models/details", {"model": "one"})[1]["needs_bytes"],
            daemon.admin("GET", "/v0/models")[1][0]["worker"]["needs_bytes"],
            workers(daemon)["one"]["needs_bytes"],
            status["workers"][0]["needs_bytes"],
            events(daemon, "loaded")[0]["bytes"],
        }


def test_events_tell_why_an_idle_model_is_unloaded(models_home: Path) -> None:
    configure(models_home, keep_alive_by_model={"one": 0.5})
    with daemons.running(models_home) as daemon:
        following = unix_request(daemon, "GET", "/v0/events?follow=1")
        assert 200 == chat(daemon, "one")
        stream = following.getresponse()
        kinds = [json.loads(stream.readline())["kind"] for _ in range(4)]
        following.close()

        assert ["loading", "loaded", "unloading", "unloaded"] == kinds
        assert "idle" == events(daemon, "unloaded")[0]["cause"]
        assert [] == psutil.Process(daemon.process.pid).children()


def test_a_subscriber_that_does_not_read_events_delays_no_request(models_home: Path) -> None:
    configure(models_home, keep_alive_seconds=0)
    with daemons.running(models_home) as daemon:
        idle = unix_request(daemon, "GET", "/v0/events?follow=1")
        chatting = threading.Thread(target=lambda: chat(daemon, "one"))
        chatting.start()
        chatting.join(60)

        assert not chatting.is_alive()
        assert 0 == daemon.stop()
        idle.close()


def test_metrics_count_requests_tokens_and_loads_in_prometheus_format(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert [200, 200, 404] == [chat(daemon, "one"), chat(daemon, "one", 8), chat(daemon, "none")]
        status, text = get(daemon, "/metrics")
    value = functools.partial(read_metric, text)

    assert 200 == status
    assert 2 == value("osaurus_http_requests_total", endpoint="/chat/completions", status="200")
    assert 1 == value("osaurus_http_requests_total", endpoint="/chat/completions", status="404")
    assert 12 == value("osaurus_completion_tokens_total", model="one")
    assert value("osaurus_prompt_tokens_total", model="one") > 0
    assert 2 == value("osaurus_time_to_first_token_seconds_count", model="one")
    assert 10 == value("osaurus_inter_token_seconds_count", model="one")
    assert 10 == value("osaurus_inter_token_seconds_bucket", model="one", le="+Inf")
    assert 1 == value("osaurus_loads_total", model="one", result="loaded")
    assert 0 == value("osaurus_requests_waiting", model="one")
    assert value("osaurus_model_memory_bytes", model="one") > 0
    assert value("osaurus_memory_budget_bytes") > value("osaurus_memory_used_bytes") > 0
    assert "_created" not in text
