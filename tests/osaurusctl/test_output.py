"""Colors, number formats, and control characters in terminal output."""

import os

import pytest

from osaurusctl.formatting import format_duration, format_table, text_width
from osaurusd.wire.admin import Availability
from osaurusd.wire.pulls import FoundModel, PullInfo, PullState


def test_errors_are_colored_on_a_terminal(terminal):
    shown, code = terminal("ls").end()
    assert code == 3
    assert "\x1b[1;31merror:\x1b[0m" in shown


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_color_can_be_disabled(terminal, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    shown, _ = terminal("ls").end()
    assert "error: osaurusd" in shown
    assert "\x1b" not in shown


def test_empty_no_color_is_ignored(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[1;31m" in terminal("ls").end()[0]


def test_pipe_gets_no_color(ctl):
    assert "\x1b" not in ctl("ls").stderr


def test_control_characters_of_an_answer_do_not_reach_the_terminal(daemon, terminal):
    daemon.answers.append(["a\x1b]0;title\x07b", "\x9bc\tend"])
    shown, code = terminal("run", "llama", "hello").end()
    assert code == 0
    assert "a]0;titlebc" in shown
    # The spinner before the answer uses control sequences of its own, but no title and no 8-bit ones.
    assert "\x1b]" not in shown
    assert "\x9b" not in shown


def test_answer_in_a_pipe_is_unchanged(daemon, ctl):
    daemon.answers.append(["a\x1b[1mb"])
    assert ctl("run", "llama", "hello").stdout == "a\x1b[1mb\n"


def test_characters_that_the_output_cannot_encode_are_replaced(daemon, ctl):
    daemon.answers.append(["größer"])
    result = ctl("run", "llama", "hello", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (0, "gr??er\n") == (result.returncode, result.stdout)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.9, "59s"), (60, "1m 0s"), (3725, "1h 2m"), (86400, "1d 0h"), (200_000, "2d 7h")],
)
def test_format_duration_uses_two_units(seconds, text):
    assert format_duration(seconds) == text


def test_table_is_aligned_without_trailing_spaces():
    assert format_table([("A", "B"), ("long", ""), ("x", "yy")]) == "A     B\nlong\nx     yy"


def test_columns_are_aligned_by_terminal_cells():
    rows = [("NAME", "SIZE"), ("模型-ünï", "1"), ("e\u0301", "2"), ("llama", "3")]
    lines = format_table(rows).splitlines()
    assert lines == ["NAME      SIZE", "模型-ünï  1", "e\u0301         2", "llama     3"]


@pytest.mark.parametrize(
    ("width", "header"),
    [(None, "A    BB   CCC  D"), (16, "A    BB   CCC  D"), (15, "A    CCC  D"), (8, "A    D"), (1, "A    D")],
)
def test_a_table_drops_columns_until_it_fits(width, header):
    rows = [("A", "BB", "CCC", "D"), ("aaa", "bbb", "c", "d")]
    assert format_table(rows, width=width, drop=["BB", "CCC"]).splitlines()[0] == header


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(("command", "title"), [("ls", "NAME"), ("ps", "MODEL"), ("search", "REPO"), ("pulls", "NAME")])
def test_lists_fit_into_a_narrow_terminal(daemon, terminal, fake, monkeypatch, command, title, columns):
    names = ["deepseek-r1-distill-qwen", "模型-ünï", "llama-3.2-3b-instruct"]
    daemon.models = [fake.model(name, parameters=3 * 10**9, aliases=["fast"]) for name in names]
    daemon.workers = [fake.worker(name, tokens_per_second=41.25, idle_left_seconds=75.0) for name in names]
    daemon.search_results = [
        FoundModel(repo=f"mlx-community/{name}-4bit", name=name, bytes=10**9, downloads=123456, fits=True)
        for name in names
    ]
    daemon.pulls = [
        PullInfo(id=name, repo=f"mlx-community/{name}", revision="main", name=name, state=PullState.DONE)
        for name in names
    ]
    monkeypatch.setenv("COLUMNS", str(columns))
    shown, code = terminal(command).end()
    assert code == 0
    lines = shown[shown.index(title) :].splitlines()
    assert len(lines) == 1 + len(names) * (2 if command == "ls" else 1)
    assert all(any(name in line for line in lines) for name in names)
    assert max(map(text_width, lines)) <= columns


def test_a_reason_that_does_not_fit_into_the_table_follows_it(daemon, terminal, fake, monkeypatch):
    daemon.models = [fake.model("llama", state=Availability.PARTIAL, reason="model-00002.safetensors is missing")]
    monkeypatch.setenv("COLUMNS", "60")
    lines = terminal("ls").end()[0].splitlines()
    assert "REASON" not in lines[0]
    assert lines[-1] == "llama: model-00002.safetensors is missing"


@pytest.mark.parametrize("command", [("load", "llama"), ("search", "llama")])
def test_waiting_shows_a_spinner_with_the_elapsed_time(daemon, terminal, command):
    daemon.answering.clear()
    screen = terminal(*command)
    screen.expect("loading llama" if "load" in command else "searching")
    # A slow machine does not show each second.
    screen.expect_match(r"0:00:(?!00)\d\d")
    daemon.answering.set()
    assert screen.end()[1] == 0


def test_pipe_gets_no_spinner(daemon, ctl):
    assert ctl("load", "llama").stderr == ""
