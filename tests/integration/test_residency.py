"""Many models in one daemon, with real workers: room, crashes, hangs, pins, and what is seen of it all."""

import json
import os
import signal
import threading
from http.client import HTTPResponse
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import daemons
from tests.daemons import UnixConnection
from tests.integration.residency import (
    ROOM_FOR_ONE,
    ROOM_FOR_TWO,
    ask,
    ask_all,
    asked,
    configure,
    events,
    get,
    make_models,
    workers,
)
from tests.integration.test_lifecycle import eventually

ENDLESS = {"max_tokens": 1900, "stream": True}


@pytest.fixture
def models_home(home: Path, smollm_folder: Path) -> Path:
    """A home with three tiny models."""
    return make_models(home, smollm_folder, "one", "two", "three")


def tokens(stream: HTTPResponse, count: int) -> None:
    """Read that many chunks."""
    for _ in range(count):
        assert stream.readline().startswith(b"data: {")
        assert stream.readline() == b"\n"


def test_idle_models_make_room_and_nobody_is_refused(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_TWO, min_residency_seconds=0.2)
    with daemons.running(models_home) as daemon:
        order = ["one", "two", "one", "three", "one", "two", "three"]

        assert [200] * 7 == [ask(daemon, model) for model in order]
        evicted = events(daemon, "unloaded")

        assert ["two", "three", "one"] == [event["model"] for event in evicted]
        assert {"room"} == {event["cause"] for event in evicted}
        assert daemon.admin("GET", "/v0/status")[1]["memory_used_bytes"] <= ROOM_FOR_TWO


def test_two_that_fit_one_at_a_time_are_both_answered_and_a_full_budget_is_refused(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE, min_residency_seconds=0.2, wait_seconds=1)
    with daemons.running(models_home) as daemon:
        assert [200] * 8 == ask_all(daemon, ["one", "two"] * 4)
        assert len(events(daemon, "loaded")) <= 5

        with asked(daemon, "one", **ENDLESS) as stream:
            tokens(stream, 1)
            os.kill(workers(daemon)["one"]["pid"], signal.SIGSTOP)
            with asked(daemon, "two", max_tokens=2) as refusal:
                error = json.loads(refusal.read())["error"]
            os.kill(workers(daemon)["one"]["pid"], signal.SIGCONT)
            tokens(stream, 3)

        assert (503, "insufficient_memory") == (refusal.status, error["code"])
        assert "`one` holds" in error["message"]
        assert "in flight" in error["message"]


def test_a_model_that_can_never_fit_is_refused_with_exit_code_5(models_home: Path) -> None:
    configure(models_home, budget_bytes=5_000_000)
    with daemons.running(models_home) as daemon:
        status, refusal = daemon.admin("POST", "/v0/load", {"model": "one"})

        assert (503, "insufficient_memory") == (status, refusal["error"]["code"])
        assert "can never fit" in refusal["error"]["message"]
        assert [] == psutil.Process(daemon.process.pid).children()


def test_a_crash_ends_one_models_stream_and_another_streams_on(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        with asked(daemon, "one", **ENDLESS) as one, asked(daemon, "two", **ENDLESS) as two:
            tokens(one, 2)
            tokens(two, 2)
            os.kill(workers(daemon)["one"]["pid"], signal.SIGKILL)
            rest = one.read().decode()
            tokens(two, 50)

        assert "worker_crashed" in rest
        assert "[DONE]" not in rest
        seen = workers(daemon)
        assert "failed" == seen["one"]["state"]
        assert "SIGKILL" in seen["one"]["last_exit"]
        assert any("one failed" in fault for fault in daemon.admin("GET", "/v0/status")[1]["faults"])
        assert 200 == ask(daemon, "one")
        assert "ready" == workers(daemon)["one"]["state"]


def test_a_worker_that_stops_moving_is_ended(models_home: Path) -> None:
    configure(models_home, hang_seconds=6)
    with daemons.running(models_home) as daemon:
        with asked(daemon, "one", **ENDLESS) as stream:
            tokens(stream, 2)
            os.kill(workers(daemon)["one"]["pid"], signal.SIGSTOP)
            rest = stream.read().decode()

        assert "made no progress for 6 s" in rest
        assert [] == psutil.Process(daemon.process.pid).children()
        assert 200 == ask(daemon, "one")


def test_pins_are_there_again_after_the_daemon_was_killed(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert (200, ["two"]) == _pinned(daemon.admin("POST", "/v0/pins", {"model": "two"}))
        daemon.wait_for("loaded")
        with asked(daemon, "two", **ENDLESS) as stream:
            tokens(stream, 2)
            (worker,) = psutil.Process(daemon.process.pid).children()
            daemon.process.kill()
            psutil.wait_procs([worker], 30)
            assert not worker.is_running()

    with daemons.running(models_home) as daemon:
        assert "two" == daemon.wait_for("loaded")["model"]
        seen = workers(daemon)["two"]
        assert (True, None) == (seen["pinned"], seen["idle_left_seconds"])
        status, refusal = daemon.admin("POST", "/v0/unload", {"model": "two"})
        assert (409, "busy") == (status, refusal["error"]["code"])
        assert (200, {"unloaded": []}) == daemon.admin("POST", "/v0/unload", {})
        assert (200, {"unloaded": ["two"]}) == daemon.admin("POST", "/v0/unload", {"model": "two", "force": True})
        assert (200, ["two"]) == _pinned(daemon.admin("GET", "/v0/pins"))
        assert (200, []) == _pinned(daemon.admin("POST", "/v0/pins", {"model": "two", "pinned": False}))


def _pinned(answer: tuple[int, dict[str, list[str]]]) -> tuple[int, list[str]]:
    return answer[0], answer[1]["pinned"]


def test_a_damaged_state_file_is_moved_aside_and_told(models_home: Path) -> None:
    state = models_home / "state"
    state.mkdir(mode=0o700)
    (state / "residency.json").write_text('{"version": 1, "pins": ["tw')
    with daemons.running(models_home) as daemon:
        faults = daemon.admin("GET", "/v0/status")[1]["faults"]

    assert any("residency.json" in fault for fault in faults)
    assert (state / "residency.damaged.json").exists()


def test_a_pinned_model_that_is_gone_is_told_and_can_be_forgotten(home: Path) -> None:
    (home / "state").mkdir(mode=0o700)
    (home / "state" / "residency.json").write_text('{"version": 1, "pins": ["org/gone"]}')
    with daemons.running(home) as daemon:
        assert any("org/gone is pinned" in fault for fault in daemon.admin("GET", "/v0/status")[1]["faults"])

        assert (200, []) == _pinned(daemon.admin("POST", "/v0/pins", {"model": "org/gone", "pinned": False}))

        assert [] == daemon.admin("GET", "/v0/status")[1]["faults"]


def test_pins_that_exceed_the_budget_are_refused_with_the_sums(models_home: Path) -> None:
    configure(models_home, budget_bytes=ROOM_FOR_ONE)
    with daemons.running(models_home) as daemon:
        assert 200 == daemon.admin("POST", "/v0/pins", {"model": "one"})[0]
        daemon.wait_for("loaded")
        status, refusal = daemon.admin("POST", "/v0/pins", {"model": "two"})

        assert (503, "insufficient_memory") == (status, refusal["error"]["code"])
        assert "`one` " in refusal["error"]["message"]
        assert " + `two` " in refusal["error"]["message"]
        assert (503, "insufficient_memory") == _code(daemon.admin("POST", "/v0/load", {"model": "two"}))


def _code(answer: tuple[int, dict[str, dict[str, str]]]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def test_a_load_says_its_phases_and_a_spare_worker_takes_two_off(models_home: Path) -> None:
    configure(models_home, spare_seconds=60)
    with daemons.running(models_home) as daemon:
        first = daemon.admin("POST", "/v0/load", {"model": "one"})[1]["load_phases"]
        daemon.wait_for("spare worker is ready")
        second = daemon.admin("POST", "/v0/load", {"model": "two"})[1]["load_phases"]
        assert 200 == ask(daemon, "two")

        assert first["import_seconds"] > 0.1
        assert first["spawn_seconds"] > 0
        assert (True, 0, 0) == (second["spare"], second["spawn_seconds"], second["import_seconds"])
        assert second["weights_seconds"] > 0
        assert workers(daemon)["two"]["load_phases"]["first_token_seconds"] > 0


def test_an_idle_model_is_unloaded_and_the_events_say_why(models_home: Path) -> None:
    configure(models_home, keep_alive_by_model={"one": 0.5})
    with daemons.running(models_home) as daemon:
        following = UnixConnection(daemon.socket)
        following.request("GET", "/v0/events?follow=1", headers={"Host": "osaurusd", "Osaurus-Api": "1"})
        assert 200 == ask(daemon, "one")
        stream = following.getresponse()
        kinds = [json.loads(stream.readline())["kind"] for _ in range(4)]
        following.close()

        assert ["loading", "loaded", "unloading", "unloaded"] == kinds
        assert "idle" == events(daemon, "unloaded")[0]["cause"]
        assert [] == psutil.Process(daemon.process.pid).children()


def test_metrics_are_prometheus_text_and_count_what_happened(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        assert [200, 200, 404] == [ask(daemon, "one"), ask(daemon, "one", 8), ask(daemon, "none")]
        status, text = get(daemon, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(name: str, **labels: str) -> float:
        samples = [sample for family in families.values() for sample in family.samples]
        return next(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    assert 200 == status
    assert 2 == value("osaurus_http_requests_total", endpoint="/chat/completions", status="200")
    assert 1 == value("osaurus_http_requests_total", endpoint="/chat/completions", status="404")
    assert 12 == value("osaurus_completion_tokens_total", model="one")
    assert value("osaurus_prompt_tokens_total", model="one") > 0
    assert 2 == value("osaurus_time_to_first_token_seconds_count", model="one")
    assert 10 == value("osaurus_inter_token_seconds_count", model="one")
    assert value("osaurus_inter_token_seconds_bucket", model="one", le="+Inf") == 10
    assert 1 == value("osaurus_loads_total", model="one", result="loaded")
    assert 0 == value("osaurus_requests_waiting", model="one")
    assert value("osaurus_model_memory_bytes", model="one") > 0
    assert value("osaurus_memory_budget_bytes") > value("osaurus_memory_used_bytes") > 0


def test_a_smaller_budget_is_in_force_at_once(models_home: Path) -> None:
    with daemons.running(models_home) as daemon:
        for model in ("one", "two"):
            assert 200 == daemon.admin("POST", "/v0/load", {"model": model})[0]
        configure(models_home, budget_bytes=ROOM_FOR_ONE)
        assert 200 == daemon.admin("POST", "/v0/reload", {})[0]

        eventually(lambda: list(workers(daemon)) == ["two"])
        assert ROOM_FOR_ONE == workers(daemon)["two"]["limit_bytes"]
        assert 200 == ask(daemon, "two")


def test_events_that_nobody_reads_hold_nobody_up(models_home: Path) -> None:
    configure(models_home, keep_alive_seconds=0)
    with daemons.running(models_home) as daemon:
        idle = UnixConnection(daemon.socket)
        idle.request("GET", "/v0/events?follow=1", headers={"Host": "osaurusd", "Osaurus-Api": "1"})
        asking = threading.Thread(target=lambda: ask(daemon, "one"))
        asking.start()
        asking.join(60)

        assert not asking.is_alive()
        assert 0 == daemon.stop()
        idle.close()
