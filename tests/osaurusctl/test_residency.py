"""`load --keep-alive`, pins, events and `top`."""

import json
import signal
import time

import pytest

from osaurusd.wire.admin import Route
from osaurusd.wire.residency import Event, EventKind


def test_pin_lists_pinned_models_and_their_memory(daemon, invoke):
    assert invoke("pin", "llama").stdout == "pinned: llama (1.0 GB of 11.0 GB)\n"
    assert invoke("pin", "qwen").stdout == "pinned: llama, qwen (2.0 GB of 11.0 GB)\n"
    assert json.loads(invoke("pin", "--json").stdout)["pinned"] == ["llama", "qwen"]
    assert invoke("unpin", "llama").stdout == "llama unpinned; still pinned: qwen\n"
    assert invoke("unpin", "qwen").stdout == "qwen unpinned\n"
    assert "no pinned models" in invoke("pin").stderr


def test_pins_that_exceed_the_memory_budget_exit_with_5(daemon, invoke):
    daemon.fail(Route.PINS, "insufficient_memory", "pinned models exceed the budget", 503)

    result = invoke("pin", "llama")

    assert result.exit_code == 5
    assert "exceed the budget" in result.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600), ("2d", 172800), ("-1", -1), ("0", 0)]
)
def test_keep_alive_is_a_duration(daemon, invoke, text, seconds):
    assert invoke("load", "llama", "--keep-alive", text).exit_code == 0
    assert daemon.bodies(Route.LOAD) == [{"model": "llama", "keep_alive_seconds": seconds}]


@pytest.mark.parametrize("text", ["soon", "1 hour", "-2", "1w", ""])
def test_invalid_keep_alive_is_a_usage_error(daemon, invoke, text):
    result = invoke("load", "llama", "--keep-alive", text)

    assert result.exit_code == 2
    assert "90s, 15m" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("--hosts", "b"), {"hosts": ["b"]}),
        (("--hosts", "b, c", "--split", "tensor"), {"hosts": ["b", "c"], "split": "tensor"}),
        (("--hosts", ""), {"hosts": []}),
    ],
)
def test_hosts_of_a_model_are_a_list_of_names(daemon, invoke, arguments, fields):
    assert invoke("load", "llama", *arguments).exit_code == 0
    assert daemon.bodies(Route.LOAD) == [{"model": "llama", **fields}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--split", "tensor"), "--split requires --hosts"), (("--hosts", "b", "--split", "x"), '"x" is not one of')],
)
def test_invalid_split_is_a_usage_error(daemon, invoke, arguments, message):
    result = invoke("load", "llama", *arguments)

    assert (2, True) == (result.exit_code, message in result.stderr)
    assert [] == daemon.bodies(Route.LOAD)


def events():
    return [
        Event(kind=EventKind.LOADED, time=0.0, model="llama", seconds=1.25, bytes=2 * 10**9, pid=42),
        Event(kind=EventKind.UNLOADED, time=60.0, model="llama", cause="memory", reason="evicted for `qwen`"),
        Event(kind=EventKind.CRASHED, time=61.0, model="qwen", reason="the worker crashed\nstderr line"),
    ]


def test_events_are_printed_one_per_line(daemon, invoke, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    daemon.events = events()

    assert invoke("events").stdout.splitlines() == [
        "00:00:00  loaded          llama (1.2 s, 2.0 GB, pid 42)",
        "00:01:00  unloaded        llama (memory): evicted for `qwen`",
        "00:01:01  crashed         qwen: the worker crashed",
        "    stderr line",
    ]


def test_events_are_json_lines_with_the_json_option(daemon, invoke):
    daemon.events = events()

    lines = [json.loads(line) for line in invoke("events", "--json").stdout.splitlines()]

    assert [("loaded", "llama"), ("unloaded", "llama"), ("crashed", "qwen")] == [
        (line["kind"], line["model"]) for line in lines
    ]


def test_ctrl_c_ends_follow_and_closes_the_connection(daemon, spawn):
    daemon.events = [*events(), daemon.HOLD]
    following = spawn("events", "--follow")
    assert b"loaded" in following.stdout.readline()

    following.send_signal(signal.SIGINT)

    assert following.wait(60) == 130
    assert following.stderr.read() == b""
    assert daemon.client_disconnected.wait(60)


def test_follow_fails_when_the_daemon_ends_the_stream(daemon, invoke):
    assert invoke("events", "--follow").exit_code == 1


def test_top_without_a_terminal_suggests_ps(daemon, invoke):
    result = invoke("top")

    assert result.exit_code == 1
    assert "osaurusctl ps" in result.stderr


def test_top_in_json_prints_the_status_once(daemon, invoke, fake):
    daemon.workers = [fake.worker("llama")]

    assert json.loads(invoke("top", "--json").stdout)["workers"][0]["model"] == "llama"


def test_top_updates_the_screen_until_ctrl_c(daemon, terminal, fake):
    daemon.workers = [fake.worker("llama", tokens_per_second=41.25)]
    screen = terminal("top", "--interval", "0.1")
    screen.expect("4.2 GB of 11.0 GB")
    screen.expect("llama")

    daemon.workers = [fake.worker("qwen")]
    screen.expect("qwen")
    screen.type("\x03")

    assert screen.end()[1] == 130
